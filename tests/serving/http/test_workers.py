import os
import pickle
import signal
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from live import SERVE, free_port, head, run, serving

from app.serving.http.workers import ReusePortSocket

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux spreads connections over sockets on one port")


def children(pid):
    """The worker processes, without the one that tracks multiprocessing's resources."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def sockets(pid):
    return sum("socket:" in str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir())


@linux
def test_connections_that_come_at_once_are_spread_over_the_workers(tiny_store, tmp_path):
    """Of 100 connections neither of two workers gets fewer than 20 (by chance: once in 10^9), and all are answered."""
    variables = {"ODDIGIT_STORE": str(tiny_store), "ODDIGIT_DRAIN_S": "0"}
    with serving(tmp_path / "log", "--workers", "2", **variables) as server, ExitStack() as stack:
        while server.log.read_text().count("Application startup complete") < 2:
            pass
        workers = children(server.pid)
        before = [sockets(worker) for worker in workers]
        lines = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(100)]
        for line in lines:
            line.sendall(head("/livez", "GET"))
        assert {line.recv(1000)[9:12] for line in lines} == {b"200"}
        shares = [sockets(worker) - had for worker, had in zip(workers, before, strict=True)]
        assert sum(shares) >= 99  # the connection of the readiness probe may have closed in between
        assert len(shares) == 2 and min(shares) >= 20


@linux
def test_a_killed_worker_leaves_no_gauges(tiny_store, tmp_path):
    """Another takes its place, and what the dead one had under way is not reported for ever."""
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    variables = {"ODDIGIT_STORE": str(tiny_store), "ODDIGIT_DRAIN_S": "0", "PROMETHEUS_MULTIPROC_DIR": str(metrics)}

    def reporting():
        return {file.stem.rpartition("_")[2] for file in metrics.glob("gauge_live*.db")}

    with serving(tmp_path / "log", "--workers", "2", **variables) as server:
        until = time.monotonic() + 60
        while len(before := reporting()) < 2:
            assert time.monotonic() < until
            time.sleep(0.1)
        killed = sorted(before)[0]
        os.kill(int(killed), signal.SIGKILL)
        while len(after := reporting()) < 2 or killed in after:
            assert time.monotonic() < until, (before, after)
            time.sleep(0.1)
        assert set(children(server.pid)) == after


@linux
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_that_is_taken_is_refused(tiny_store, workers):
    """Workers share a port with each other, not with a server that was there before: a sentence, and no second server."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        options = ("--port", str(taken.getsockname()[1]), "--workers", workers)
        done = run(*SERVE, *options, ODDIGIT_STORE=str(tiny_store))
    assert done.returncode == 2
    assert "in use" in done.stderr.lower()
    assert "Traceback" not in done.stderr


@linux
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_socket_travels_as_a_further_one_on_its_address(host):
    """Pickled and read again it is another socket, which can listen on the port beside the first."""
    with ReusePortSocket.on(host, free_port()) as first, pickle.loads(pickle.dumps(first)) as second:
        assert second.getsockname() == first.getsockname()
        assert second.fileno() != first.fileno()
        first.listen()
        second.listen()
