"""Shared by the benchmarks of a running server: its start and stop, requests and answers, `wrk`, CPU time and memory."""

import asyncio
import http.client
import io
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "benchmarks"  # logs of servers
SAMPLES = ROOT / "tests" / "samples"
PHOTO = SAMPLES / "two.jpg"
FORM = "multipart/form-data; boundary=X"
LOAD_CORE = 1 % (os.cpu_count() or 1)  # for clients; a server on one core has core 0
LOST = (OSError, EOFError, asyncio.LimitOverrunError, ValueError)  # raised instead of an answer; a TimeoutError is an OSError

_READY_S = 120.0  # BentoML and MLServer take half a minute


class BenchmarkError(SystemExit):
    """Ends the program with exit code 1 and a sentence on stderr, unless it is caught."""


class Server(NamedTuple):
    """A server that answers."""

    process: subprocess.Popen[bytes]
    port: int
    ready_s: float  # from its start to its first answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None


@contextmanager
def serving(*arguments: str, log: Path, cores: str = "", port: int = 0, **variables: str) -> Iterator[Server]:
    """`python -m app serve` with these arguments and variables, the shipped store and defaults else. Port 0 is a free one."""
    port = port or free_port()
    command = [sys.executable, "-m", "app", "serve", "--port", str(port), *arguments]
    probe = urllib.request.Request(f"http://127.0.0.1:{port}/readyz")
    store = {"ODDIGIT_STORE": str(ROOT / "model_store")}
    with started(command, probe, port, log=log, cores=cores, variables=store | variables) as server:
        yield server


@contextmanager
def started(
    command: Sequence[str],
    probe: urllib.request.Request,
    port: int,
    *,
    log: Path,
    cores: str = "",
    folder: Path = ROOT,
    variables: Mapping[str, str],
) -> Iterator[Server]:
    """Start a server and wait until it answers `probe` with 2xx; after the block, stop it with all its child processes.

    `cores` is a list for `taskset`; "" stands for all. ODDIGIT_* variables of this process are not handed on.

    Raises:
        BenchmarkError: the server ended, or was not ready after two minutes.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ODDIGIT_")}
    pinned = ["taskset", "-c", cores, *command] if cores else command
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(
            pinned, cwd=folder, env={**kept, **variables}, stdout=out, stderr=out, start_new_session=True
        )
    try:
        _wait_until_ready(process, probe, log)
        yield Server(process, port, time.perf_counter() - began)
    finally:
        stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], probe: urllib.request.Request, log: Path) -> None:
    until = time.monotonic() + _READY_S
    while process.poll() is None and time.monotonic() < until:
        with suppress(OSError, http.client.HTTPException), urllib.request.urlopen(probe, timeout=5):
            return
        time.sleep(0.05)
    raise BenchmarkError(f"The server did not start; {log} ends with:\n{log.read_text(errors='replace')[-2000:]}")


def stop(process: subprocess.Popen[bytes], patience_s: float = 60.0) -> float:
    """Send SIGTERM. Returns the seconds until the server ended, infinity if it had to be killed."""
    began = time.monotonic()
    process.terminate()
    try:
        process.wait(patience_s)
        taken = time.monotonic() - began
    except subprocess.TimeoutExpired:
        taken = float("inf")
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # also child processes that have outlived it
    process.wait()
    return taken


def free_port() -> int:
    """A port that nobody listens on, below those (from 32768) that the system gives to outgoing connections."""
    while True:
        port = random.randrange(10_000, 32_768)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Run the block on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Usage(NamedTuple):
    """Memory (MiB, proportional set size) and CPU time (s) of a process and all its child processes."""

    mib: float
    cpu_s: float


def usage(pid: int) -> Usage:
    """Takes 20 ms, in which the processes wait for their memory and for a core."""
    mib, ticks = 0.0, 0
    for each in process_tree(pid):
        with suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))  # of the process and of its ended children
            rollup = Path(f"/proc/{each}/smaps_rollup").read_text()
            mib += int(rollup.split("\nPss:")[1].split()[0]) / 1024
    return Usage(mib, ticks / os.sysconf("SC_CLK_TCK"))


def process_tree(pid: int) -> list[int]:
    """The process and all its living descendants."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").glob("*"):
            with suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


class Answer(NamedTuple):
    """An HTTP answer; `head` is in lower case."""

    status: int
    head: bytes
    body: bytes

    @property
    def closes(self) -> bool:
        return b"\r\nconnection: close\r\n" in self.head

    @property
    def is_refusal(self) -> bool:
        return self.status == 503 and b"\r\nretry-after:" in self.head


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Read one answer whole.

    Raises:
        OSError, EOFError: the connection ended.
        ValueError, LimitOverrunError: the bytes are no HTTP answer with a length.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 "):
        raise ValueError(f"no HTTP answer: {head[:40]!r}")
    body = await reader.readexactly(int(head.partition(b"\r\ncontent-length:")[2].split(b"\r\n")[0]))
    return Answer(int(head[9:12]), head, body)


def post(path: str, content_type: str, body: bytes, *fields: str) -> bytes:
    """A whole POST request; `fields` are further header fields."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {content_type}", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def form(*files: bytes, content_type: str = "image/png") -> bytes:
    """A body of type FORM."""
    head = f'--X\r\nContent-Disposition: form-data; name="file"; filename="a"\r\nContent-Type: {content_type}\r\n\r\n'.encode()
    return b"".join(head + data + b"\r\n" for data in files) + b"--X--\r\n"


def seven() -> Image.Image:
    """A grey image of 28x28 pixels."""
    image = Image.new("L", (28, 28))
    ImageDraw.Draw(image).line([(7, 7), (20, 7), (12, 22)], fill=255, width=3)
    return image


def seven_png() -> bytes:
    out = io.BytesIO()
    seven().save(out, "PNG")
    return out.getvalue()


@dataclass(frozen=True)
class Load:
    """What wrk measured."""

    answers: int  # 2xx
    answers_per_s: float
    p50_ms: float
    p99_ms: float
    failures: str  # in wrk's words; "" for none


def wrk(
    url: str,
    content_type: str,
    body: bytes,
    *,
    connections: int,
    seconds: float,
    cores: str = str(LOAD_CORE),
    accepts_failures: bool = False,
) -> Load:
    """Post `body` again and again over `connections` connections, from one thread on `cores`.

    Raises:
        BenchmarkError: wrk is missing, nothing was answered, or, without `accepts_failures`, a request failed or was refused.
    """
    if not shutil.which("wrk"):
        raise BenchmarkError("wrk is needed: apt-get install wrk")
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        escaped = "".join(f"\\{byte:03d}" for byte in body)
        script.write(f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "{content_type}"\nwrk.body = "{escaped}"\n')
        script.flush()
        options = ["-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "10s", "--latency", "-s", script.name, url]
        done = subprocess.run(["taskset", "-c", cores, "wrk", *options], capture_output=True, text=True)
    load = parse_wrk(done.stdout + done.stderr)
    if load.failures and not accepts_failures:
        raise BenchmarkError(f"{connections} connections to {url}, failed requests: {load.failures}")
    return load


def parse_wrk(printed: str) -> Load:
    """Raises BenchmarkError where wrk has printed no rate."""
    requests = re.search(r"(\d+) requests in ", printed)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", printed)
    if not requests or not rate or not int(requests[1]):
        raise BenchmarkError(f"wrk measured nothing:\n{printed}")
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", printed)
    failures = re.findall(r"(?:Non-2xx|Socket errors).*", printed)
    answers = int(requests[1]) - (int(refused[1]) if refused else 0)
    rate_of_answers = float(rate[1]) * answers / int(requests[1])
    return Load(answers, rate_of_answers, _percentile(printed, 50), _percentile(printed, 99), "; ".join(failures))


def _percentile(printed: str, which: int) -> float:
    """Milliseconds from wrk's table of latencies."""
    found = re.search(rf"{which}%\s+([\d.]+)(us|ms|s|m)\b", printed)
    if found is None:
        raise BenchmarkError(f"wrk printed no latencies:\n{printed}")
    return float(found[1]) * {"us": 0.001, "ms": 1, "s": 1000, "m": 60_000}[found[2]]
