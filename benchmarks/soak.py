"""Does the server's memory grow? `python benchmarks/soak.py`: half a million requests of mixed kinds, one line every so often.

Small and large images, forms, arrays, reconstructions, embeddings, broken files and wrong parameters, from several connections.
Resident memory is compared with what it was after the first 20,000. The sequence follows a seed, so that a run can be repeated.
"""

import argparse
import asyncio
import io
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from overload import PORT, ROOT, resident_mib, start
from serve import bodies

SETTLED = 20_000
CONNECTIONS = 16


def requests() -> list[tuple[int, bytes]]:
    """(weight, request): what the traffic is made of."""
    samples = ROOT / "tests" / "samples"
    kind, png = bodies()["raw"]
    form_kind, form = bodies()["form"]
    array = io.BytesIO()
    np.save(array, np.random.RandomState(0).randint(0, 256, (200, 28, 28)).astype(np.uint8))
    points = b'{"embedding": [[0.5, 0.5], [10, -3]]}'
    return [
        (600, post("/score", kind, png)),
        (100, post("/embed", kind, png)),
        (100, post("/reconstruct", kind, png)),
        (60, post("/score?alpha=0.05", form_kind, form)),
        (10, post("/score", "image/png", (samples / "cat.png").read_bytes())),
        (5, post("/score", "image/jpeg", (samples / "two.jpg").read_bytes())),
        (5, post("/score?fdr=0.1", "application/x-npy", array.getvalue())),
        (40, post("/decode", "application/json", points)),
        (20, post("/score", "image/png", png[:60])),
        (20, post("/score", "image/gif", os.urandom(300))),
        (10, post("/score?alpha=2", kind, png)),
        (10, post("/score", "text/plain", b"hello")),
        (10, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"),
        (10, b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"),
    ]


def post(path: str, kind: str, body: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def soak(pid: int, total: int, seed: int) -> None:
    weights, kinds = zip(*requests(), strict=True)
    order = random.Random(seed)
    statuses: Counter[int] = Counter()
    sent, settled, began = 0, 0.0, time.perf_counter()

    async def client() -> None:
        nonlocal sent, settled
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
        while sent < total:
            sent += 1
            if sent == SETTLED:
                settled = resident_mib(pid)
            if sent % (total // 20) == 0:
                print(
                    f"{sent:>9,} requests  {resident_mib(pid):,.1f} MiB  {sent / (time.perf_counter() - began):,.0f}/s",
                    flush=True,
                )
            writer.write(order.choices(kinds, weights)[0])
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            statuses[int(head[9:12])] += 1
            await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
            if b"connection: close" in head:
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
        writer.close()

    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    end = resident_mib(pid)
    print(f"memory after {SETTLED:,} requests {settled:,.1f} MiB, after {total:,} {end:,.1f} MiB: {end / settled - 1:+.1%}")
    print("statuses:", dict(sorted(statuses.items())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.requests <= SETTLED:
        sys.exit(f"At least {SETTLED + 1:,} requests are needed to compare anything.")
    server = start()
    try:
        asyncio.run(soak(server.pid, arguments.requests, arguments.seed))
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
