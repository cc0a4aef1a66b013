"""Ways to attack. Each returns a coroutine function that sends to a port until it is cancelled, and counts in a `Tally`."""

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from common import LOST, read_answer

PATIENCE_S = 60.0


@dataclass
class Tally:
    """What an attack sent and got back."""

    sent: int = 0  # bytes
    requests: int = 0
    statuses: Counter[int] = field(default_factory=Counter)  # 0: the connection was closed without an answer


Play = Callable[[int, Tally], Awaitable[None]]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def at_rate(messages: Iterable[bytes], rate: float = 10.0) -> Play:
    """`rate` requests a second, answered or not, each on a connection of its own."""

    async def play(port: int, tally: Tally) -> None:
        async with asyncio.TaskGroup() as group:
            for message in _cycle(messages):
                group.create_task(ask_once(port, message, tally))
                await asyncio.sleep(1 / rate)

    return play


def over_connections(messages: Iterable[bytes], connections: int = 8) -> Play:
    """As many requests as `connections` kept-open connections get answered."""
    known = list(messages)

    async def client(streams: Streams, tally: Tally) -> None:
        for message in _cycle(known):
            await _send(streams[1], message, tally)
            if await _answer(streams[0], tally):
                break

    return _again_and_again(client, connections)


def endless(head: bytes, piece: bytes, connections: int = 8) -> Play:
    """`connections` connections that send `head` and then `piece` again and again, until the server closes."""

    async def client(streams: Streams, tally: Tally) -> None:
        answered = asyncio.create_task(_answer(streams[0], tally))
        try:
            await _send(streams[1], head, tally)
            while not answered.done():
                await _send(streams[1], piece, tally, requests=0)
        finally:
            answered.cancel()

    return _again_and_again(client, connections)


def silent(head: bytes, connections: int) -> Play:
    """`connections` connections that send `head` and then nothing; each is opened again when it is closed."""

    async def client(streams: Streams, tally: Tally) -> None:
        await _send(streams[1], head, tally)
        while not await _answer(streams[0], tally):
            pass

    return _again_and_again(client, connections, pause_s=0.1)


def resets(message: bytes, connections: int = 8) -> Play:
    """`connections` clients that connect, send `message`, read the answer, and reset the connection."""

    async def client(streams: Streams, tally: Tally) -> None:
        reader, writer = streams
        await _send(writer, message, tally)
        await _answer(reader, tally)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return _again_and_again(client, connections, pause_s=0)


def leaving(message: bytes, connections: int = 8) -> Play:
    """`connections` clients that connect, send `message`, which is the beginning of a request, and leave."""

    async def client(streams: Streams, tally: Tally) -> None:
        await _send(streams[1], message, tally)
        await asyncio.sleep(0.005)
        streams[1].transport.abort()

    return _again_and_again(client, connections, pause_s=0)


def in_parts(parts: Sequence[bytes], connections: int) -> Play:
    """`connections` connections that send `parts`, with a second between them; each is opened again when it is answered."""

    async def client(streams: Streams, tally: Tally) -> None:
        for part in parts:
            await _send(streams[1], part, tally, requests=0)
            await asyncio.sleep(1)
        tally.requests += 1
        await _answer(streams[0], tally)

    return _again_and_again(client, connections, pause_s=0.1)


def slow_readers(message: bytes, rate: float = 10.0, bytes_per_s: int = 11_000) -> Play:
    """`rate` new connections a second, each of which asks once and reads its answer at `bytes_per_s`."""

    async def client(port: int, tally: Tally) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as line, suppress(*LOST):
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.setblocking(False)
            await loop.sock_connect(line, ("127.0.0.1", port))
            await loop.sock_sendall(line, message)
            tally.sent += len(message)
            tally.requests += 1
            first = True
            while data := await loop.sock_recv(line, bytes_per_s):
                if first:
                    tally.statuses[int(data[9:12])] += 1
                    first = False
                await asyncio.sleep(len(data) / bytes_per_s)

    async def play(port: int, tally: Tally) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(client(port, tally))
                await asyncio.sleep(1 / rate)

    return play


def unread(message: bytes, connections: int = 8) -> Play:
    """`connections` connections that send `message` again and again and never read an answer."""

    async def client(streams: Streams, tally: Tally) -> None:
        while True:
            async with asyncio.timeout(PATIENCE_S):
                await _send(streams[1], message, tally)

    return _again_and_again(client, connections, pause_s=0.1, buffer_bytes=1024)


async def nothing(port: int, tally: Tally) -> None:
    """Send nothing: the attack does not come through the network."""
    await asyncio.Event().wait()


def _again_and_again(
    client: Callable[[Streams, Tally], Awaitable[None]],
    connections: int,
    *,
    pause_s: float = 0.01,
    buffer_bytes: int = 65_536,  # of answers, asyncio's default
) -> Play:
    """Open `connections` connections, run `client` over each, and open it again when that has ended."""

    async def repeat(port: int, tally: Tally) -> None:
        while True:
            with suppress(*LOST):
                streams = await asyncio.open_connection("127.0.0.1", port, limit=buffer_bytes)
                try:
                    await client(streams, tally)
                finally:
                    streams[1].close()
            await asyncio.sleep(pause_s)

    async def play(port: int, tally: Tally) -> None:
        await asyncio.gather(*(repeat(port, tally) for _ in range(connections)))

    return play


def _cycle(messages: Iterable[bytes]) -> Iterator[bytes]:
    known = list(messages)
    while True:
        yield from known


async def ask_once(port: int, message: bytes, tally: Tally) -> None:
    """Send one request over a new connection and count its answer."""
    with suppress(*LOST):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await _send(writer, message, tally)
            await _answer(reader, tally)
        finally:
            writer.close()


async def _send(writer: asyncio.StreamWriter, message: bytes, tally: Tally, *, requests: int = 1) -> None:
    for start in range(0, len(message), 65_536):
        piece = message[start : start + 65_536]
        writer.write(piece)
        tally.sent += len(piece)
        await writer.drain()
    tally.requests += requests


async def _answer(reader: asyncio.StreamReader, tally: Tally) -> bool:
    """Read one answer whole and count its status. Returns whether the server closes the connection."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            answer = await read_answer(reader)
    except LOST:  # not where the attack ends meanwhile
        tally.statuses[0] += 1
        raise
    tally.statuses[answer.status] += 1
    return answer.closes
