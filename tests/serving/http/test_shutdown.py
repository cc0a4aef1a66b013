import os
import re
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from live import ROOT, SERVE, environment, free_port, head, serving, wait_until
from strokes import png, stroke_images

PNG = "image/png"
GOOD = png(stroke_images(1, seed=0)[0])
LARGE = png(stroke_images(1, seed=0, size=700)[0])


def has_ended(server):
    """Whether the process is no more, but for its exit code."""
    try:
        return Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def status_of(server, path):
    """The status of a GET over a connection of its own; None where none is to be had."""
    with suppress(httpx.TransportError):
        return httpx.get(server.url + path, timeout=20).status_code
    return None


def load(server, number, done):
    """Send requests one after the other -> the status or error of each, by its id."""
    answers = {}
    with httpx.Client(base_url=server.url, timeout=60) as client:
        while not done.is_set():
            made = f"load-{number}-{len(answers)}"
            body = LARGE if len(answers) % 4 == 0 else GOOD
            try:
                response = client.post("/score", content=body, headers={"content-type": PNG, "x-request-id": made})
            except httpx.TransportError as error:
                answers[made] = error
                done.wait(0.01)
                continue
            answers[made] = response.status_code
    return answers


@contextmanager
def under_load(server, threads=6):
    """Clients that ask all the time; what they were answered comes after the block."""
    done, answers = threading.Event(), {}
    with ThreadPoolExecutor(threads) as pool:
        asking = [pool.submit(load, server, number, done) for number in range(threads)]
        try:
            time.sleep(0.7)
            yield answers
        finally:
            done.set()
    for one in asking:
        answers |= one.result()


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_under_load_loses_no_request(tiny_store, tmp_path, workers):
    """The probe turns 503 at once, while every request is answered until the server closes; the exit code is 0."""
    variables = {"ODDIGIT_STORE": str(tiny_store), "ODDIGIT_DRAIN_S": "3"}
    with serving(tmp_path / "log", "--workers", str(workers), **variables) as server, under_load(server) as answers:
        os.kill(server.pid, signal.SIGTERM)
        # A supervisor looks at its signals twice a second; the second worker may still be starting.
        wait_until(lambda: status_of(server, "/readyz") == 503, patience=2.5)
        assert status_of(server, "/livez") == 200
        wait_until(lambda: has_ended(server))
    log = server.log.read_text()
    logged = {made: int(status) for status, made in re.findall(r'"POST /score" (\d+) .*\[(load-\S+)\]', log)}
    assert set(logged.values()) == {200}
    assert logged == {made: status for made, status in answers.items() if isinstance(status, int)}


def begin(server):
    """A connection with half of a question on it."""
    line = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    line.sendall(head(content_type=PNG, content_length=len(GOOD)) + GOOD[:100])
    return line


def finish(line):
    """Send the other half -> what came back, to the end of the connection."""
    with line:
        line.sendall(GOOD[100:])
        answer = b""
        while piece := line.recv(65536):
            answer += piece
    return answer


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_question_that_had_begun_is_answered_though_it_ends_late(tiny_store, tmp_path, workers):
    """Bodies that were on their way at SIGTERM are read and judged: during the drain and after it. Then the server ends."""
    variables = {"ODDIGIT_STORE": str(tiny_store), "ODDIGIT_DRAIN_S": "0.5"}
    with serving(tmp_path / "log", "--workers", workers, **variables) as server:
        early, late = begin(server), begin(server)
        time.sleep(0.3)
        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: status_of(server, "/readyz") != 200)
        assert finish(early).startswith(b"HTTP/1.1 200")
        time.sleep(1.5)
        assert not has_ended(server)
        assert finish(late).startswith(b"HTTP/1.1 200")
        wait_until(lambda: has_ended(server))


def test_while_it_drains_everything_is_answered_but_readiness(tiny_store, tmp_path):
    """On old connections and new ones, each of which is told to close; a second SIGTERM ends the drain."""
    with serving(tmp_path / "log", ODDIGIT_STORE=str(tiny_store), ODDIGIT_DRAIN_S="20") as server:
        with httpx.Client(base_url=server.url, timeout=20) as old:
            assert "connection" not in old.get("/readyz").headers
            os.kill(server.pid, signal.SIGTERM)
            wait_until(lambda: status_of(server, "/readyz") == 503, patience=15)
            for path, status in (("/readyz", 503), ("/v2/health/ready", 503), ("/livez", 200), ("/", 200), ("/model", 200)):
                response = old.get(path)
                assert (response.status_code, response.headers["connection"]) == (status, "close")
            response = old.post("/score", content=GOOD, headers={"content-type": PNG})
            assert (response.status_code, response.headers["connection"]) == (200, "close")
        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: has_ended(server), patience=10)


@pytest.mark.parametrize("delay", [0.05, 0.3, 0.7, 1.2])
def test_sigterm_while_the_server_starts_ends_it(tiny_store, tmp_path, delay):
    """At once and without a trace, whatever it is doing then."""
    with (tmp_path / "log").open("wb") as out:
        environment_ = environment(ODDIGIT_STORE=str(tiny_store), ODDIGIT_DRAIN_S="0")
        process = subprocess.Popen([*SERVE, "--port", str(free_port())], cwd=ROOT, env=environment_, stdout=out, stderr=out)
    time.sleep(delay)
    process.terminate()
    assert process.wait(30) in (0, -signal.SIGTERM, 143)
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_server_without_a_drain_ends_at_once(tiny_store, tmp_path):
    """ODDIGIT_DRAIN_S=0 with idle connections open: they are closed, the exit code is 0."""
    with serving(tmp_path / "log", ODDIGIT_STORE=str(tiny_store), ODDIGIT_DRAIN_S="0") as server:
        idle = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(5)]
        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: has_ended(server), patience=10)
        for line in idle:
            with line:
                assert line.recv(10) == b""
