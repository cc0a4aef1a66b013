import os
import pickle
import signal
import socket
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
import uvicorn
from live import SERVE, free_port, head, run, serving, wait_until

from app.serving.http import workers
from app.serving.http.workers import ReusePortSocket

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux spreads connections over sockets on one port")


def children(pid):
    """The worker processes, without the one that tracks multiprocessing's resources."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def sockets(pid):
    """The number of sockets that a process has open."""
    count = 0
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since the folder was listed
            count += "socket:" in str(file.readlink())
    return count


@linux
def test_connections_that_come_at_once_are_spread_over_the_workers(tiny_store, tmp_path):
    """Of 100 connections neither of two workers gets fewer than 20 (by chance: once in 10^9), and all are answered."""
    variables = {"ODDIGIT_STORE": str(tiny_store), "ODDIGIT_DRAIN_S": "0"}
    with serving(tmp_path / "log", "--workers", "2", **variables) as server, ExitStack() as stack:
        wait_until(lambda: server.log.read_text().count("Application startup complete") == 2)
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
    assert not reporting()  # those that end with the server remove theirs


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


class FakeProcess:
    """A worker as the supervisor sees it."""

    def __init__(self, number):
        self.pid, self.exitcode, self.alive, self.process = number, None, True, self

    def is_alive(self, timeout=None):
        return self.alive

    def die(self, exitcode):
        self.alive, self.exitcode = False, exitcode
        return self

    def kill(self):
        if self.alive:
            self.die(-9)

    def start(self):
        pass

    join = start


class Supervised:
    """Two fake workers under a supervisor whose clock is set by hand."""

    def __init__(self, monkeypatch):
        self.now, self.deaths, self.started, self.broken = 0.0, 0, 0, None
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        monkeypatch.setattr(workers, "Process", lambda *_: self.make())
        self.supervisor = workers.Workers(uvicorn.Config("app", workers=2), [], self.count, lambda: self.now)
        self.supervisor.processes = [self.make(), self.make()]

    def make(self):
        if self.broken:
            raise self.broken
        self.started += 1
        return FakeProcess(self.started)

    def count(self):
        self.deaths += 1

    def look(self, after=0.5):
        self.now += after
        self.supervisor.keep_subprocess_alive()
        return self.supervisor.processes


@pytest.fixture
def supervised(monkeypatch):
    return Supervised(monkeypatch)


@pytest.mark.parametrize(
    ("exitcode", "reason"), [(-9, "signal SIGKILL"), (-40, "signal 40"), (1, "exit code 1"), (0, "exit code 0")]
)
def test_a_worker_that_dies_is_logged_with_the_reason_counted_and_replaced(supervised, caplog, exitcode, reason):
    """At once, the first time; the other one is left alone."""
    first, second = supervised.supervisor.processes
    first.die(exitcode)
    assert supervised.look() == [supervised.supervisor.processes[0], second]
    assert supervised.supervisor.processes[0] is not first
    assert f"worker 1 died: {reason};" in caplog.text
    assert supervised.deaths == 1


def test_a_worker_that_does_not_answer_is_killed_and_replaced(supervised, caplog):
    """It is told apart from one that died by itself."""
    hanging = supervised.look()[0]
    hanging.process = FakeProcess(1)
    hanging.alive = False
    assert hanging not in supervised.look()
    assert "did not answer" in caplog.text


def test_a_worker_has_a_minute_for_its_first_answer(supervised, caplog):
    """Where the processor is busy, its imports take longer than an answer may; one that hangs from the start is replaced."""
    starting = supervised.supervisor.processes[0]
    starting.process = FakeProcess(1)
    starting.alive = False
    assert starting in supervised.look() and starting in supervised.look(50)
    starting.alive = True
    assert starting in supervised.look(50)
    starting.alive = False
    assert starting not in supervised.look()
    replacement = supervised.supervisor.processes[0]
    replacement.process = FakeProcess(9)
    replacement.alive = False
    assert replacement in supervised.look() and replacement in supervised.look(50)
    assert replacement not in supervised.look(11)
    assert caplog.text.count("did not answer") == 2


def test_a_worker_that_keeps_dying_is_started_again_later_and_later(supervised):
    """After 0, 1, 3, 7, 15 and then 30 seconds each time; once it has lived for a minute, at once again."""
    for pause in (0, 1, 3, 7, 15, 30, 30):
        supervised.supervisor.processes[0].die(-9)
        before = supervised.started
        supervised.look(0)
        if pause:
            supervised.look(pause - 0.1)
            assert supervised.started == before
            supervised.look(0.2)
        assert supervised.started == before + 1
    supervised.now += 61
    supervised.supervisor.processes[0].die(-9)
    before = supervised.started
    supervised.look(0)
    assert supervised.started == before + 1


def test_a_worker_that_a_signal_has_started_is_not_replaced(supervised):
    """SIGHUP replaces all workers, also one that waits for its next start."""
    for _ in range(3):
        supervised.supervisor.processes[0].die(1)
        supervised.look()
    supervised.supervisor.processes[0] = other = supervised.make()
    for _ in range(100):
        assert supervised.look()[0] is other
    other.die(1)
    assert supervised.look()[0] is not other or supervised.look(60)[0] is not other


def test_a_server_whose_first_workers_cannot_start_stops(supervised):
    """uvicorn's exit code for a failed start, without a worker that served before, ends the server."""
    supervised.supervisor.processes[0].die(3)
    supervised.look()
    assert supervised.supervisor.should_exit.is_set()


def test_workers_that_cannot_start_are_a_failure(monkeypatch):
    """The exit code is that of one process which cannot start, not that of a server which was stopped."""
    monkeypatch.setattr(workers.Workers, "run", lambda supervisor: supervisor._bury(0, FakeProcess(1).die(3)))
    with pytest.raises(SystemExit) as end:
        workers.serve(2, host="127.0.0.1", port=free_port(), app="app")
    assert end.value.code == 3


def test_a_replacement_is_tried_again_where_there_is_no_memory_for_it(supervised, caplog):
    """The supervisor stays, with the worker that is left."""
    supervised.supervisor.processes[0].die(-9)
    supervised.broken = OSError(12, "Cannot allocate memory")
    supervised.look()
    assert "cannot be started: Cannot allocate memory" in caplog.text
    supervised.broken = None
    assert not supervised.look()[0].alive
    assert supervised.look(60)[0].alive


def test_a_replacement_that_cannot_start_is_tried_again(supervised):
    """A store that is out of reach for a moment does not end a server whose other workers serve."""
    supervised.supervisor.processes[0].die(-9)
    supervised.look()[0].die(3)
    supervised.look()
    assert not supervised.supervisor.should_exit.is_set()


@linux
def test_a_killed_worker_is_counted_in_the_metrics(tiny_store, tmp_path):
    """The process that starts the workers counts; every worker reports the sum."""
    with serving(tmp_path / "log", "--workers", "2", ODDIGIT_STORE=str(tiny_store), ODDIGIT_DRAIN_S="0") as server:
        wait_until(lambda: len(children(server.pid)) == 2)
        _wait_for_deaths(server, 0)
        os.kill(int(children(server.pid)[0]), signal.SIGKILL)
        _wait_for_deaths(server, 1)
        assert "died: signal SIGKILL" in server.log.read_text()


@linux
def test_workers_end_after_their_supervisor_was_killed(tiny_store, tmp_path):
    """Else they would keep the port, and nobody would know of them."""
    variables = {"ODDIGIT_STORE": str(tiny_store), "ODDIGIT_DRAIN_S": "0"}
    with serving(tmp_path / "log", "--workers", "2", ends=(-signal.SIGKILL,), **variables) as server:
        _wait_for_deaths(server, 0)
        left = children(server.pid)
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not any(_runs(pid) for pid in left))
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{server.url}/livez", timeout=5)


def _runs(pid):
    """Whether a process has not ended; one that has ended may wait for its new parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait_for_deaths(server, count):
    wait_until(lambda: _reports_deaths(server, count))


def _reports_deaths(server, count):
    try:
        return f"oddigit_worker_deaths_total {count}.0" in httpx.get(f"{server.url}/metrics", timeout=5).text
    except httpx.TransportError:
        return False
