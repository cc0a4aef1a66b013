"""Does the server's memory grow? `python benchmarks/soak.py`: half a million requests of mixed kinds, one line every so often.

Small and large images, forms, arrays, reconstructions, embeddings, broken files and wrong parameters, from several connections,
against a server with its default settings. The memory (PSS) of all its processes is compared with what it was after the first
20,000 requests. The sequence follows a seed, so that a run can be repeated. The exit code is 1 if the server dies, does not
answer, answers with a status above 499 other than 503, or if the memory grows by more than 10 %.
"""

import argparse
import asyncio
import io
import random
import time
from collections import Counter

import numpy as np
from common import BUILD, FORM, LOST, PHOTO, SAMPLES, BenchmarkError, Server, form, post, read_answer, serving, seven_png, usage

SETTLED = 20_000
CONNECTIONS = 16
MOST_GROWTH = 0.1  # of the memory


def requests() -> list[tuple[int, bytes]]:
    """(weight, request): what the traffic is made of."""
    kind, png = "image/png", seven_png()
    array = io.BytesIO()
    np.save(array, np.random.RandomState(0).randint(0, 256, (200, 28, 28)).astype(np.uint8))
    points = b'{"embedding": [[0.5, 0.5], [10, -3]]}'
    return [
        (600, post("/score", kind, png)),
        (100, post("/embed", kind, png)),
        (100, post("/reconstruct", kind, png)),
        (60, post("/score?alpha=0.05", FORM, form(png))),
        (10, post("/score", "image/png", (SAMPLES / "cat.png").read_bytes())),
        (5, post("/score", "image/jpeg", PHOTO.read_bytes())),
        (5, post("/score?fdr=0.1", "application/x-npy", array.getvalue())),
        (40, post("/decode", "application/json", points)),
        (20, post("/score", "image/png", png[:60])),
        (20, post("/score", "image/gif", random.Random(0).randbytes(300))),
        (10, post("/score?alpha=2", kind, png)),
        (10, post("/score", "text/plain", b"hello")),
        (10, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"),
        (10, b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"),
    ]


async def soak(server: Server, total: int, seed: int) -> list[str]:
    """Send `total` requests and print memory and statuses. Returns what is wrong, in sentences."""
    pid = server.process.pid
    weights, kinds = zip(*requests(), strict=True)
    order = random.Random(seed)
    statuses: Counter[int] = Counter()
    sent, settled_mib, began = 0, 0.0, time.perf_counter()

    async def client() -> None:
        nonlocal sent, settled_mib
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        while sent < total:
            sent += 1
            if sent == SETTLED:
                settled_mib = usage(pid).mib
            if sent % (total // 20) == 0:
                rate = sent / (time.perf_counter() - began)
                print(f"{sent:>9,} requests  {usage(pid).mib:,.1f} MiB  {rate:,.0f}/s", flush=True)
            writer.write(order.choices(kinds, weights)[0])
            answer = await read_answer(reader)
            statuses[answer.status] += 1
            if answer.closes:
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.close()

    try:
        await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    except LOST as error:
        return [f"The server {'does not answer' if server.is_alive else 'died'}: {error!r}."]
    end_mib = usage(pid).mib
    growth = end_mib / settled_mib - 1
    print(f"memory after {SETTLED:,} requests {settled_mib:,.1f} MiB, after {total:,} {end_mib:,.1f} MiB: {growth:+.1%}")
    print("statuses:", dict(sorted(statuses.items())))
    errors = {status: count for status, count in statuses.items() if status > 499 and status != 503}
    wrong = [f"{count} answers have the status {status}." for status, count in errors.items()]
    return wrong + ([f"The memory grew by more than {MOST_GROWTH:.0%}."] if growth > MOST_GROWTH else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.requests <= SETTLED:
        raise BenchmarkError(f"At least {SETTLED + 1:,} requests are needed to compare anything.")
    with serving(log=BUILD / "soak.log") as server:
        wrong = asyncio.run(soak(server, arguments.requests, arguments.seed))
    if wrong:
        raise BenchmarkError(" ".join(wrong))


if __name__ == "__main__":
    main()
