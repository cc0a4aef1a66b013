"""Can anything a client sends break the server? `python benchmarks/hostile.py`: 200,000 mutated requests, one line of result.

Valid images of every type, arrays, forms, JSON and whole request heads are cut, spliced, flipped and repeated, and sent over
raw sockets to a server with its default settings. Every answer must be HTTP, and none may have a status above 499 other than
503, and 504 for an upload that takes too long. At the end the server must be alive, and the memory (PSS) of its processes at
most 10 % above the most that they held during the first tenth of the requests (at one moment, a decoder process may just have
been replaced). Else the exit code is 1. The mutations follow a seed, so that a failure can be repeated: what broke it is
written to build/hostile/.

`python benchmarks/hostile.py --attack [NAME ...]` plays attacks on time and memory instead (attacks/catalogue.py), each
against a fresh server beside honest clients. It prints a row an attack, then the CPU time of each upload alone, and the time
that the server takes to exit during them.
"""

import argparse
import asyncio
import io
import random
import sys
from collections import Counter
from collections.abc import Callable

import numpy as np
from common import FORM, LOST, PHOTO, ROOT, SAMPLES, Server, form, read_answer, serving, usage
from PIL import Image

CONNECTIONS = 8
MOST_GROWTH = 0.1  # of the memory
FOUND = ROOT / "build" / "hostile"
PATHS = ("/score", "/score", "/score?preprocess=digit", "/score?preprocess=none", "/reconstruct", "/embed", "/score?fdr=0.1")
QUERIES = ("alpha=", "alpha=1e-400", "fdr=2", "preprocess=auto%00", "alpha=.5&alpha=x", "%ff=%fe", "alpha=0.3", "&" * 200)
WORDS = (
    b"\x00",
    b"\xff" * 8,
    b"\r\n",
    b"IDAT",
    b"\xff\xda",
    b"9" * 20,
    b"-1",
    b"{",
    b"[" * 50,
    b"--X",
    b"%s%n",
    b"\x00\x00\x00\x1c",
)


def images() -> list[tuple[str, bytes]]:
    """Content type and file: every type and mode that is accepted, small and large."""
    noise = np.random.RandomState(0).randint(0, 256, (60, 40, 4)).astype(np.uint8)
    made = []
    for kind, modes in {
        "PNG": ("L", "RGB", "RGBA", "P", "1", "LA", "I;16"),
        "JPEG": ("L", "RGB", "CMYK"),
        "WEBP": ("RGB", "RGBA"),
        "BMP": ("L", "RGB", "1"),
        "GIF": ("L", "P"),
        "TIFF": ("L", "RGB", "CMYK", "I;16"),
    }.items():
        for mode in modes:
            for side in ((60, 40), (28, 28)):
                out = io.BytesIO()
                Image.fromarray(noise).convert("L" if mode == "I;16" else mode).resize(side).convert(mode).save(out, kind)
                made.append((f"image/{kind.lower()}", out.getvalue()))
    return [*made, ("image/png", (SAMPLES / "seven.png").read_bytes()), ("image/jpeg", PHOTO.read_bytes())]


def payloads() -> list[tuple[str, str, bytes]]:
    """Path ("" for any of the questions), content type, body."""
    files = images()
    array = io.BytesIO()
    np.save(array, np.random.RandomState(1).randint(0, 256, (3, 28, 28)).astype(np.uint8))
    others = [
        ("", "application/x-npy", array.getvalue()),
        ("", FORM, form(*(data for _, data in files[:3]))),
        ("/decode", "application/json", b'{"embedding": [[0.5, -3], [1e3, 2]]}'),
        ("/v2/models/mnist/infer", "application/json", tensor(2, '{"alpha": 0.1}')),
    ]
    return [("", kind, data) for kind, data in files] + others * 8


def tensor(count: int, parameters: str) -> bytes:
    """A request of the Open Inference Protocol."""
    numbers = np.random.RandomState(2).randint(0, 256, (count, 784)).tolist()
    given = f'{{"name": "images", "datatype": "UINT8", "shape": [{count}, 784], "data": {numbers}}}'
    return f'{{"id": "a", "parameters": {parameters}, "inputs": [{given}], "outputs": [{{"name": "reconstruction"}}]}}'.encode()


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Some of: bits flipped, a piece cut, repeated, moved or overwritten, a word put in, the end left off."""
    out = bytearray(data)
    for _ in range(draw.choice((0, 1, 1, 2, 3, 8))):
        if not out:
            break
        at, length = draw.randrange(len(out)), draw.choice((1, 2, 4, 16, 100))
        match draw.randrange(7):
            case 0:
                out[at] ^= 1 << draw.randrange(8)
            case 1:
                del out[at : at + length]
            case 2:
                out[at:at] = out[at : at + length] * draw.choice((1, 2, 50))
            case 3:
                out[at : at + length] = draw.randbytes(length)
            case 4:
                out[at:at] = draw.choice(WORDS)
            case 5:
                del out[at:]
            case _:
                out[at : at + 4] = draw.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF)).to_bytes(4, draw.choice(("big", "little")))
    return bytes(out)


def request(known: list[tuple[str, str, bytes]], draw: random.Random) -> tuple[bytes, bool]:
    """A request, and whether its head is whole; of a mutated one nobody knows what comes back."""
    path, kind, data = draw.choice(known)
    path = path or draw.choice(PATHS)
    if draw.random() < 0.1:
        path += ("&" if "?" in path else "?") + draw.choice(QUERIES)
    if draw.random() < 0.05:
        kind = draw.choice(
            ("", "image/svg+xml", "text/plain", "image/png;;;", "multipart/form-data", "multipart/form-data; boundary=")
        )
    body = mutated(data, draw)
    accept = draw.choice(("", "Accept: image/png\r\n", "Accept: application/x-npy\r\n", "Accept: ;q=,,*/*;q=x\r\n"))
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n{accept}Content-Length: {len(body)}\r\n\r\n".encode()
    whole = draw.random() >= 0.03
    return (head if whole else mutated(head, draw)) + body, whole


async def attack(server: Server, total: int, seed: int) -> list[str]:
    """Send `total` requests and print statuses and memory. Returns what is wrong, in sentences."""
    pid, known, statuses, broken, sent = server.process.pid, payloads(), Counter[int](), 0, 0

    async def client(number: int) -> None:
        nonlocal broken, sent
        draw = random.Random(f"{seed}/{number}")
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        while sent < total:
            sent += 1
            message, whole = request(known, draw)
            status, closes = 0, True
            try:
                writer.write(message)
                async with asyncio.timeout(30 if whole else 0.3):
                    answer = await read_answer(reader)
                status, closes = answer.status, answer.closes
            except LOST:
                pass
            statuses[status] += 1
            if (whole and status == 0) or (status >= 500 and status not in (503, 504)):
                broken += 1
                (FOUND / f"{seed}-{number}-{sent}").write_bytes(message)
            if closes or not whole:
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.close()

    before_mib = usage(pid).mib
    try:
        settled_mib, *_ = await asyncio.gather(
            most_memory(pid, lambda: sent > total // 10), *(client(number) for number in range(CONNECTIONS))
        )
    except OSError as error:  # a connection cannot be opened
        return [f"The server {'takes no connections' if server.is_alive else 'died'}: {error}."]
    end_mib = usage(pid).mib
    print(f"statuses: {dict(sorted(statuses.items()))} (0: no answer, allowed for a mutated head)")
    print(f"memory: {before_mib:,.0f} MiB before, {settled_mib:,.0f} at most in the first tenth, {end_mib:,.0f} at the end")
    grew = end_mib > (1 + MOST_GROWTH) * settled_mib
    wrong = [f"{broken} requests broke the server; they are in {FOUND}."] if broken else []
    return wrong + ([f"The memory grew by more than {MOST_GROWTH:.0%}."] if grew else [])


async def most_memory(pid: int, reached: Callable[[], bool]) -> float:
    """The most memory in MiB, looked at each second, until `reached` returns True."""
    most = 0.0
    while not reached():
        await asyncio.sleep(1)
        most = max(most, usage(pid).mib)
    return most


def play_attacks(parts: list[str], seconds: float, only: str | None) -> int:
    """Print the tables of the attacks whose names hold one of `parts` (none: all). Returns how many bounds fail."""
    from attacks.catalogue import ATTACKS
    from attacks.measure import HEADER, NOT_PLAYED, cost_alone, exit_time, row

    names = [name for name in ATTACKS if not parts or any(part in name for part in parts)]
    uploads = [name for name in names if ATTACKS[name].upload]
    failed = 0
    tables = {
        "rows": (HEADER, names, lambda name: row(name, seconds, FOUND)),
        "cost": ("upload alone | bytes | status | CPU s | at most 2.5", uploads, lambda name: cost_alone(name, FOUND)),
        "exit": ("SIGTERM during | exit after s | at most 5", uploads, lambda name: exit_time(name, FOUND)),
    }
    for table, (header, rows, play) in tables.items():
        if only in (None, table) and rows:
            print(f"| {header} |\n|{'---|' * (header.count('|') + 1)}", flush=True)
            for name in rows:
                print(line := play(name), flush=True)
                failed += not line.endswith(("pass |", f"{NOT_PLAYED} |"))
    print(f"{failed} of the rows break a bound.")
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attack", nargs="*", metavar="NAME", help="attacks to play, or parts of their names; none: all")
    parser.add_argument("--seconds", type=float, default=8, help="of each attack")
    parser.add_argument("--only", choices=("rows", "cost", "exit"), help="one of the three tables of the attacks")
    arguments = parser.parse_args()
    FOUND.mkdir(parents=True, exist_ok=True)
    if arguments.attack is not None:
        sys.exit(play_attacks(arguments.attack, arguments.seconds, arguments.only) > 0)
    with serving(log=FOUND / "server.log") as server:
        wrong = asyncio.run(attack(server, arguments.requests, arguments.seed))
        if not wrong and not server.is_alive:
            wrong = ["The server died."]
    print(f"{arguments.requests:,} requests, seed {arguments.seed}: {' '.join(wrong) or 'nothing broke the server'}")
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
