"""What the server does with more than it can do: `python benchmarks/overload.py`, one table.

First the capacity: eight connections, each asking again as soon as it is answered, too few for anything to be refused. Then an
open loop for a minute: requests leave at four times that rate whether answered or not, over connections that are kept open.
The capacity is measured again after each quarter of the minute, since machines change their pace. Counted are the answers
(200), the refusals (503 with Retry-After) and their latency, resident memory, and the latency two seconds after. The server
runs on core 0, the load on core 1. The question is a photograph of a digit as a phone takes it.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
PORT = 9120
CONNECTIONS = 512
QUARTERS = 4  # of the overload, with a measurement of the capacity between them


@dataclass
class Seen:
    """What came back: (when it was due, how long it took, status, whether it had a Retry-After)."""

    answers: list[tuple[float, float, int, bool]] = field(default_factory=list)
    late: int = 0  # requests that the load itself could not send in time

    def seconds(self, *statuses: int) -> np.ndarray:
        return np.array([took for _, took, status, _ in self.answers if status in statuses] or [np.nan])


class Connection:
    """One kept-open connection that sends a request and reads its answer."""

    def __init__(self, request: bytes) -> None:
        self._request = request

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", PORT)

    async def ask(self) -> tuple[int, bool]:
        self._writer.write(self._request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        await self._reader.readexactly(length)
        if b"connection: close" in lines:
            self._writer.close()
            await self.open()
        return int(head[9:12]), any(line.startswith(b"retry-after:") for line in lines)

    def close(self) -> None:
        self._writer.close()


async def capacity(request: bytes, seconds: float) -> float:
    """Answers a second that eight connections get, each asking as soon as it is answered."""
    done = 0
    until = time.perf_counter() + seconds

    async def go_on() -> None:
        nonlocal done
        connection = Connection(request)
        await connection.open()
        while time.perf_counter() < until:
            status, _ = await connection.ask()
            done += status == 200
        connection.close()

    await asyncio.gather(*(go_on() for _ in range(8)))
    return done / seconds


async def open_loop(request: bytes, rate: float, seconds: float) -> Seen:
    """Send `rate` requests a second, due at even steps, over connections that are free; note what comes back."""
    seen = Seen()
    free: asyncio.Queue[Connection] = asyncio.Queue()
    connections = [Connection(request) for _ in range(CONNECTIONS)]
    await asyncio.gather(*(connection.open() for connection in connections))
    for connection in connections:
        free.put_nowait(connection)

    async def one(connection: Connection, due: float) -> None:
        try:
            status, retry = await connection.ask()
        except (OSError, asyncio.IncompleteReadError):
            status, retry = 0, False
            await connection.open()
        seen.answers.append((due, time.perf_counter() - due, status, retry))
        free.put_nowait(connection)

    began, tasks = time.perf_counter(), set()
    for index in range(int(rate * seconds)):
        due = began + index / rate
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        elif index % 16 == 0:
            await asyncio.sleep(0)  # let answers in
        if free.empty():
            seen.late += 1
            continue
        task = asyncio.create_task(one(free.get_nowait(), time.perf_counter()))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    for connection in connections:
        connection.close()
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--times", type=float, default=4, help="the capacity")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {1 % (os.cpu_count() or 1)})
    server = start()
    try:
        asyncio.run(measure(server.pid, request(), arguments.seconds, arguments.times))
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)


async def measure(pid: int, request: bytes, seconds: float, times: float) -> None:
    await capacity(request, 2)
    peaks = [await capacity(request, 5)]
    calm = await open_loop(request, peaks[0] / 4, 3)
    before = resident_mib(pid)
    seen = Seen()
    for _ in range(QUARTERS):
        quarter = await open_loop(request, peaks[0] * times, seconds / QUARTERS)
        seen.answers += quarter.answers
        seen.late += quarter.late
        after = resident_mib(pid)
        peaks.append(await capacity(request, 5))
    await open_loop(request, peaks[0] * times, 2)
    await asyncio.sleep(2)
    again = await open_loop(request, peaks[0] / 4, 3)
    report(peaks, calm, seen, again, seconds, (before, after, resident_mib(pid)))


def report(peaks: list[float], calm: Seen, seen: Seen, again: Seen, seconds: float, memory: tuple[float, float, float]) -> None:
    statuses = Counter(status for _, _, status, _ in seen.answers)
    sent, answered = len(seen.answers) / seconds, statuses[200] / seconds
    bare = sum(status == 503 and not retry for _, _, status, retry in seen.answers)
    mean, largest = sum(peaks) / len(peaks), max(peaks)
    rows = [
        ("capacity", " / ".join(f"{peak:,.0f}" for peak in peaks) + " answers/s"),
        ("sent", f"{sent:,.0f} requests/s ({sent / peaks[0]:.1f} times; {seen.late:,} not sent)"),
        (
            "answered",
            f"{answered:,.0f} answers/s: {answered / mean:.0%} of the mean capacity, {answered / largest:.0%} of the largest",
        ),
        ("refused with 503", f"{statuses[503]:,}, of them {bare} without Retry-After"),
        ("deadline passed, 504", f"{statuses[504]:,}"),
        ("anything else", f"{sum(n for status, n in statuses.items() if status not in (200, 503, 504)):,}"),
        ("a refusal takes", f"{percentiles(seen.seconds(503))}"),
        ("an answer takes", f"{percentiles(seen.seconds(200))}"),
        ("memory before, after, 5 s later", " / ".join(f"{mib:,.0f} MiB" for mib in memory)),
        ("calm latency before", percentiles(calm.seconds(200))),
        ("calm latency 2 s after", percentiles(again.seconds(200))),
    ]
    print("| what | measured |\n|---|---|")
    for what, measured in rows:
        print(f"| {what} | {measured} |")


def percentiles(seconds: np.ndarray) -> str:
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"


def request() -> bytes:
    body = (ROOT / "tests" / "samples" / "two.jpg").read_bytes()
    head = f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def start() -> subprocess.Popen[bytes]:
    variables = {**os.environ, "ODDIGIT_ACCESS_LOG": "false", "ODDIGIT_DEADLINE_MS": "500"}
    command = ["taskset", "-c", "0", sys.executable, "-m", "app", "serve", "--port", str(PORT)]
    server = subprocess.Popen(command, cwd=ROOT, env=variables, stderr=subprocess.DEVNULL)
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=2)
            return server
        except OSError:
            time.sleep(0.1)
    server.kill()
    sys.exit("The server did not start.")


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
