"""A fresh server on cores 0 and 1 with its default limits: its start, its end, its memory and its CPU time."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
with socket.create_server(("127.0.0.1", 0)) as _free:
    PORT = int(_free.getsockname()[1])  # free now; several runs may share the machine


@dataclass
class Usage:
    """Memory (MiB, proportional set size) and CPU time (s) of a server and all its child processes."""

    mib: float
    cpu_s: float


def usage(pid: int) -> Usage:
    mib, ticks = 0.0, 0
    for each in _tree(pid):
        with suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))  # of the process and of its ended children
            rollup = Path(f"/proc/{each}/smaps_rollup").read_text()
            mib += int(rollup.split("\nPss:")[1].split()[0]) / 1024
    return Usage(mib, ticks / os.sysconf("SC_CLK_TCK"))


def anonymous_mib(pid: int) -> float:
    """Memory (MiB) of a server and all its child processes that no file backs; pages that they share count for each.

    Takes less than 1 ms. `usage` takes 20 ms, in which the server waits for its memory and for a core.
    """
    mib = 0.0
    for each in _tree(pid):
        with suppress(OSError):
            fields = Path(f"/proc/{each}/status").read_text().partition("\nRssAnon:")[2].split()
            mib += int(fields[0]) / 1024 if fields else 0.0  # a process that has just ended has none
    return mib


def _tree(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").glob("*"):
            with suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def start(variables: dict[str, str], arguments: tuple[str, ...], log: Path) -> subprocess.Popen[bytes]:
    """A fresh server on cores 0 and 1 that is ready. Exits when it does not become ready."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ODDIGIT_")}
    command = ["taskset", "-c", "0,1", sys.executable, "-m", "app", "serve", "--port", str(PORT), *arguments]
    with log.open("wb") as out:
        server = subprocess.Popen(command, cwd=ROOT, env=kept | {"ODDIGIT_DRAIN_S": "0"} | variables, stdout=out, stderr=out)
    for _ in range(300):
        if server.poll() is not None:
            break
        with suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=2)
            return server
        time.sleep(0.1)
    server.kill()
    sys.exit(f"The server did not start; see {log}.")


def stop(server: subprocess.Popen[bytes], patience_s: float = 60.0) -> float:
    """Send SIGTERM. Returns the seconds until the server ended, infinity if it had to be killed."""
    began = time.monotonic()
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(patience_s)
    except subprocess.TimeoutExpired:
        _kill_tree(server.pid)
        server.wait()
        return float("inf")
    return time.monotonic() - began


def _kill_tree(pid: int) -> None:
    for each in reversed(_tree(pid)):
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
