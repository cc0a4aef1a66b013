"""What the server does with more than it can do: `python benchmarks/overload.py`, one table.

First the capacity: eight connections, each asking again as soon as it is answered, too few for anything to be refused. Then an
open loop for a minute: requests are due at four times that rate, whether the earlier ones are answered or not, over connections
that are kept open; a request that finds none of them free is not sent, and counted as such. The capacity is measured again
after each quarter of the minute, since machines change their pace. Counted are the answers (200), the refusals (503 with
Retry-After) and their latency from the time at which the request was due; the rates are those until the last answer. Memory
(PSS) is that of all processes of the server, before and after the overload and at the end. The end is a quarter of the capacity
for three seconds, as before the overload, after another overload of two seconds and a pause of two. The server runs on core 0,
the load on core 1. The request is a photograph of a digit as a phone takes it.
"""

import argparse
import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from common import BUILD, LOAD_CORE, LOST, PHOTO, Answer, Server, on_core, post, read_answer, serving, usage

CONNECTIONS = 512
QUARTERS = 4  # of the overload, with a measurement of the capacity between them
REQUEST = post("/score", "image/jpeg", PHOTO.read_bytes())


class Outcome(NamedTuple):
    """The outcome of one request."""

    seconds: float  # from when it was due to the end of its answer
    status: int  # 0: the connection ended without an answer
    is_refusal: bool  # a 503 with Retry-After


@dataclass
class Results:
    """The outcomes of the requests of an open loop, or of several in turn."""

    outcomes: list[Outcome] = field(default_factory=list)
    taken_s: float = 0.0  # from the first request's due time to the last answer
    not_sent: int = 0  # requests for which no connection was free

    def add(self, other: "Results") -> None:
        self.outcomes += other.outcomes
        self.taken_s += other.taken_s
        self.not_sent += other.not_sent

    def latency(self, status: int) -> str:
        seconds = [each.seconds for each in self.outcomes if each.status == status] or [np.nan]
        p50, p99 = np.percentile(seconds, [50, 99]) * 1000
        return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"


class Connection:
    """One kept-open connection that sends a request and reads its answer."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def reopen(self) -> None:
        self.close()
        await self.open()

    async def ask(self) -> Answer:
        self._writer.write(REQUEST)
        return await read_answer(self._reader)

    def close(self) -> None:
        self._writer.close()


async def capacity(port: int, seconds: float) -> float:
    """Answers a second that eight connections get, each asking as soon as it is answered."""
    answered, began = 0, time.perf_counter()

    async def ask_again() -> None:
        nonlocal answered
        connection = Connection(port)
        await connection.open()
        while time.perf_counter() < began + seconds:
            answer = await connection.ask()
            answered += answer.status == 200
            if answer.closes:
                await connection.reopen()
        connection.close()

    await asyncio.gather(*(ask_again() for _ in range(8)))
    return answered / (time.perf_counter() - began)


async def open_loop(port: int, rate: float, seconds: float) -> Results:
    """Send `rate` requests a second, due at even steps, over connections that are free; note what comes back."""
    results = Results()
    free: asyncio.Queue[Connection] = asyncio.Queue()
    connections = [Connection(port) for _ in range(CONNECTIONS)]
    await asyncio.gather(*(connection.open() for connection in connections))
    for connection in connections:
        free.put_nowait(connection)

    async def ask(connection: Connection, due: float) -> None:
        try:
            answer = await connection.ask()
            status, is_refusal, closes = answer.status, answer.is_refusal, answer.closes
        except LOST:
            status, is_refusal, closes = 0, False, True
        results.outcomes.append(Outcome(time.perf_counter() - due, status, is_refusal))
        if closes:
            await connection.reopen()
        free.put_nowait(connection)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for index in range(int(rate * seconds)):
            due = began + index / rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            elif index % 16 == 0:
                await asyncio.sleep(0)  # let answers in
            if free.empty():
                results.not_sent += 1
            else:
                tasks.create_task(ask(free.get_nowait(), due))
    results.taken_s = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return results


async def measure(server: Server, seconds: float, times: float) -> None:
    """Print the table."""
    port, pid = server.port, server.process.pid
    await capacity(port, 2)
    capacities = [await capacity(port, 5)]
    before = await open_loop(port, capacities[0] / 4, 3)
    memory = [usage(pid).mib]
    overload = Results()
    for _ in range(QUARTERS):
        overload.add(await open_loop(port, capacities[0] * times, seconds / QUARTERS))
        capacities.append(await capacity(port, 5))
    memory.append(usage(pid).mib)
    await open_loop(port, capacities[0] * times, 2)
    await asyncio.sleep(2)
    after = await open_loop(port, capacities[0] / 4, 3)
    memory.append(usage(pid).mib)
    report(capacities, before, overload, after, memory)


def report(capacities: list[float], before: Results, overload: Results, after: Results, memory: list[float]) -> None:
    statuses = Counter(each.status for each in overload.outcomes)
    sent, answered = len(overload.outcomes) / overload.taken_s, statuses[200] / overload.taken_s
    bare = statuses[503] - sum(each.is_refusal for each in overload.outcomes)
    of_mean, of_largest = answered / np.mean(capacities), answered / max(capacities)
    rows = {
        "capacity": " / ".join(f"{each:,.0f}" for each in capacities) + " answers/s",
        "sent": f"{sent:,.0f} requests/s ({sent / capacities[0]:.1f} times; {overload.not_sent:,} not sent)",
        "answered": f"{answered:,.0f} answers/s: {of_mean:.0%} of the mean capacity, {of_largest:.0%} of the largest",
        "refused with 503": f"{statuses[503]:,}, of them {bare} without Retry-After",
        "deadline passed, 504": f"{statuses[504]:,}",
        "anything else": f"{sum(n for status, n in statuses.items() if status not in (200, 503, 504)):,}",
        "a refusal takes": overload.latency(503),
        "an answer takes": overload.latency(200),
        "memory before, after, at the end": " / ".join(f"{mib:,.0f} MiB" for mib in memory),
        "latency at a quarter of the capacity, before": before.latency(200),
        "the same, 2 s after an overload": after.latency(200),
    }
    print("| what | measured |\n|---|---|")
    for what, measured in rows.items():
        print(f"| {what} | {measured} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--times", type=float, default=4, help="the capacity")
    options = parser.parse_args()
    variables = {"ODDIGIT_ACCESS_LOG": "false", "ODDIGIT_DEADLINE_MS": "500"}
    with on_core(LOAD_CORE), serving(log=BUILD / "overload.log", cores="0", **variables) as server:
        asyncio.run(measure(server, options.seconds, options.times))


if __name__ == "__main__":
    main()
