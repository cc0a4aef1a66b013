"""Real servers for tests: started as a user starts them, spoken to over real sockets."""

import http.client
import itertools
import os
import select
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx

ROOT = Path(__file__).parents[1]
SHIPPED = Path(os.environ.get("ODDIGIT_STORE") or ROOT / "model_store")
NOWHERE = "/nonexistent"  # in place of the developer's own store
SERVE = (sys.executable, "-m", "app", "serve")
# The same server, but it looks at the store ten times as often, so that tests of reloads wait less.
WATCHFUL = (
    sys.executable,
    "-c",
    "from app.serving.engine import models; models.POLL_S = 0.05; from app.cli.commands import main; main()",
    "serve",
)


class Server(NamedTuple):
    """A server that answers."""

    url: str
    port: int
    pid: int
    log: Path

    @property
    def memory(self):
        """Bytes of memory that the process holds."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def told(self, marker):
        """The one line of the log that holds `marker`; it may be written a little after the answer is read."""
        until = time.monotonic() + 20
        while not (lines := [line for line in self.log.read_text().splitlines() if marker in line]):
            assert time.monotonic() < until, f"nothing in the log holds {marker!r}"
            time.sleep(0.02)
        (line,) = lines
        return line


class Answer(NamedTuple):
    """What came back over a raw socket; `status` 0 where the connection was closed without an answer."""

    status: int
    headers: dict
    body: bytes


@contextmanager
def serving(log, *arguments, command=SERVE, ends=(0,), **variables):
    """A server process that is ready; on leaving it is told to stop, and must do so with success and without a trace."""
    port = free_port()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--port", str(port), *arguments], cwd=ROOT, env=environment(**variables), stdout=out, stderr=out
        )
    try:
        server = Server(f"http://127.0.0.1:{port}", port, process.pid, log)
        _wait_until_ready(server, process)
        yield server
        process.terminate()
        status = process.wait(60)
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text(), log.read_text()
    assert status in ends, f"the server ended with {status} after SIGTERM"


def environment(**variables):
    """This process's environment without the program's own variables, and with these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ODDIGIT_")}
    return {**kept, "XDG_DATA_HOME": NOWHERE, **variables}


def run(*command, **variables):
    """A command run from the root to its end."""
    return subprocess.run(command, cwd=ROOT, env=environment(**variables), capture_output=True, text=True, timeout=120)


def free_port():
    """A port that nobody listens on now, not one of those (from 32768) that the system gives to others meanwhile."""
    for port in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError


_PORTS = itertools.cycle(range(10_000 + os.getpid() % 110 * 200, 32_768))  # test processes that run at once begin apart


def wait_until(holds, patience=60):
    """Wait until the function `holds` returns something true, and return that."""
    until = time.monotonic() + patience
    while not (found := holds()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


def head(path="/score", method="POST", **headers):
    """The bytes of a request's head; underscores in header names stand for dashes."""
    lines = [f"{method} {path} HTTP/1.1", "host: test", *(f"{name.replace('_', '-')}: {headers[name]}" for name in headers)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def speak(server, *pieces, patience=60):
    """Send pieces of bytes, from any iterables, until the server answers; then read its answer."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=patience) as line:
        for piece in (part for pieces_ in pieces for part in ([pieces_] if isinstance(pieces_, bytes) else pieces_)):
            if select.select([line], [], [], 0)[0]:
                break
            try:
                line.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                break
        method = "HEAD" if pieces and isinstance(pieces[0], bytes) and pieces[0].startswith(b"HEAD ") else "POST"
        with http.client.HTTPResponse(line, method=method) as response:
            try:
                response.begin()
                return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
            except (http.client.HTTPException, ConnectionError):
                return Answer(0, {}, b"")


def _wait_until_ready(server, process):
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert process.poll() is None, server.log.read_text()
        try:
            if httpx.get(f"{server.url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.03)
    raise AssertionError("the server did not become ready:\n" + server.log.read_text())
