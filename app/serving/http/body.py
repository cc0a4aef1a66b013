"""Request bodies: an ASGI `receive` in, complete bytes out, under limits of size, memory and time. Responses made of bytes."""

import asyncio
import io
import mmap
import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from types import coroutine
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive

from app.serving.errors import RequestTimeout, TooLarge, Unavailable

MAX_DISCARDED_BODY_BYTES = 2**30  # of a request that was answered before its body was complete

_MIN_RATE, _SLOW_S = 4 * 1024, 20.0  # bytes a second, and the seconds for which a client may send more slowly
_SMALL_BODY_BYTES = 16 * 1024  # of each body that need no reservation; 4,096 connections may hold them
_SMALL_HEAD_BYTES = 4 * 1024  # of each head that need no reservation
_MAX_HEADS_BYTES = 8 * 2**20
_FIELD_BYTES = 120  # of Python objects for each header field
_GROWING_BYTES = 2**20  # the largest body that is moved while it grows
_MAX_DELAY_S = 0.25
_RATE, _BURST = 64 * 2**20, 16 * 2**20  # bytes a second, which take a fifth of a core, and bytes that are read without a pause


class ByteBudget:
    """The memory that all request or response bodies of a process may take together, without small bodies."""

    def __init__(self, size: int) -> None:
        """`size` in bytes."""
        self.size = size
        self._available = size

    def acquire(self, size: int) -> bool:
        """Reserve `size` bytes. Returns False, and reserves nothing, when the budget does not have them."""
        if size > self._available:
            return False
        self._available -= size
        return True

    def release(self, size: int) -> None:
        """Give back `size` reserved bytes."""
        self._available += size


class ByteRate:
    """The rate at which a process reads large bodies, all connections together: the rest of the time is for other requests."""

    def __init__(self, rate: float = _RATE, burst: float = _BURST, clock: Callable[[], float] = time.monotonic) -> None:
        """`rate` in bytes a second; after a pause, `burst` bytes may be read at once.

        No connection waits longer than _MAX_DELAY_S, so that the rate is exceeded where very many send. Otherwise clients that
        send something and leave, again and again, would let the others wait for ever longer.
        """
        self._rate = rate
        self._burst_s = burst / rate
        self._clock = clock
        self._due = 0.0  # time at which the bytes that were read so far are within the rate

    def delay(self, size: int) -> float:
        """Count `size` bytes that were read. Returns the seconds for which the connection may not be read again."""
        now = self._clock()
        self._due = min(max(self._due, now - self._burst_s) + size / self._rate, now + _MAX_DELAY_S)
        return max(0.0, self._due - now)


@dataclass(frozen=True)
class RequestLimits:
    """Limits of all requests; each endpoint that reads a body has a limit of its size."""

    bodies: ByteBudget
    responses: ByteBudget  # of all response bodies
    body_timeout_s: float  # the longest time in which nothing of a body is received
    heads: ByteBudget = field(default_factory=lambda: ByteBudget(_MAX_HEADS_BYTES))  # large ones, while a body is awaited


class LimitedReceive:
    """The ASGI `receive` of one request, with a timeout on progress, and a share of the budget."""

    def __init__(self, receive: Receive, limits: RequestLimits, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """`headers` of the request take a share of the memory if they are large and the body is awaited."""
        self._receive = receive
        self._limits = limits
        self._headers: Iterable[tuple[bytes, bytes]] | None = headers
        self._reserved = self._reserved_head = 0
        self._due = 0.0  # time by which more must have been received; 0 before the first part of a body
        self.received = 0
        self.complete = False

    async def __call__(self) -> Message:
        """The next message.

        Raises:
            RequestTimeout: the client sent nothing for `timeout_s` seconds, or sent more slowly than _MIN_RATE for _SLOW_S.
            TooLarge: the body is larger than the whole budget.
            Unavailable: the budget is exhausted.
        """
        if self.complete:  # what follows is the disconnect, however long that takes
            return await self._receive()
        pending: Any = self._receive()
        try:
            first = pending.send(None)
        except StopIteration as finished:  # nearly always the message is there. asyncio.timeout costs 5 % of a small request
            message: Message = finished.value
        else:
            message = await self._wait(pending, first)
        self.complete = not message.get("more_body", False)
        size = len(message.get("body", b""))
        self.received += size
        if not self.complete:
            latest = time.monotonic() + _SLOW_S
            self._due = min((self._due or latest) + size / _MIN_RATE, latest)
        if self.received > _SMALL_BODY_BYTES:
            self._reserve()
        return message

    async def _wait(self, pending: Coroutine[Any, Any, Message], first: object) -> Message:
        """The message of a call of `receive` that waits on `first`. Raises RequestTimeout or Unavailable."""
        if self._headers is not None:
            size = sum(len(name) + len(value) + _FIELD_BYTES for name, value in self._headers) - _SMALL_HEAD_BYTES
            self._headers = None
            if size > 0 and not self._limits.heads.acquire(size):
                raise Unavailable("Too many requests with large heads are being received.", {"retry-after": "1"})
            self._reserved_head = max(0, size)
        try:
            async with asyncio.timeout(self._seconds_left()):
                return await _resume(pending, first)
        except TimeoutError:
            raise RequestTimeout(self._timeout_message()) from None

    def _seconds_left(self) -> float:
        if not self._due:
            return self._limits.body_timeout_s
        return max(0.0, min(self._limits.body_timeout_s, self._due - time.monotonic()))

    def _timeout_message(self) -> str:
        if self._due and time.monotonic() >= self._due:
            return f"The body arrives at less than {_MIN_RATE:,} bytes a second."
        return f"Nothing of the body was received for {self._limits.body_timeout_s:g} seconds."

    def release(self) -> None:
        """Give the reservations back, once nothing refers to the request."""
        self._limits.bodies.release(self._reserved)
        self._limits.heads.release(self._reserved_head)
        self._reserved = self._reserved_head = 0

    def _reserve(self) -> None:
        size = max(0, self.received - _SMALL_BODY_BYTES)
        if size > self._limits.bodies.size:  # it could not be received later either
            self.release()
            raise too_large(self._limits.bodies.size)
        if not self._limits.bodies.acquire(size - self._reserved):
            self.release()
            raise Unavailable("Too many large bodies are being received.", {"retry-after": "1"})
        self._reserved = size


@coroutine
def _resume(pending: Coroutine[Any, Any, Message], first: object) -> Generator[Any, Any, Message]:
    """Continue a coroutine that has been started by hand and waits on `first`."""
    try:
        yield first
    except BaseException:
        pending.close()
        raise
    return (yield from pending.__await__())


def declared_length(headers: Mapping[bytes, bytes]) -> int:
    """The length of the body as its head declares it; 0 where it declares none."""
    declared = headers.get(b"content-length", b"")
    return int(declared) if declared.isdigit() else 0


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], *, limit: int) -> bytes | memoryview:
    """The whole body of a request: bytes if it came in one message, else the buffer that it was received into, without a copy.

    Raises:
        TooLarge: more than `limit` bytes were declared or sent.
        ClientDisconnect: the client closed the connection.
    """
    declared = declared_length(headers)
    if declared > limit:
        raise too_large(limit)
    message = await receive()
    first: bytes = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body", False) and len(first) <= limit:
        return first  # nearly always the body is one message
    limit = declared or limit  # a memory map does not grow
    body: io.BytesIO | mmap.mmap = io.BytesIO()
    while message["type"] == "http.request":
        data = message.get("body", b"")
        if (length := body.tell()) + len(data) > limit:
            raise too_large(limit)
        if declared and isinstance(body, io.BytesIO) and length > _GROWING_BYTES:
            body = _map(body, declared)
        body.write(data)
        if not message.get("more_body", False):
            return memoryview(body)[: body.tell()] if isinstance(body, mmap.mmap) else body.getbuffer()
        first = data = b""  # `body` has a copy: free the received part while the next one is awaited
        message.clear()
        message = await receive()
    raise ClientDisconnect


def _map(received: io.BytesIO, size: int) -> mmap.mmap:
    """A memory map of `size` bytes that begins with what was received.

    A buffer of 80 MB is moved again and again while it grows, for 10 ms and more. The pages of a map take memory when they are
    written, so that a length that is only declared takes none.
    """
    body = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE)
    body.write(received.getbuffer())
    return body


def too_large(limit: int) -> TooLarge:
    """The 413 for a body of more than `limit` bytes."""
    return TooLarge(f"The body is larger than {limit:,} bytes, the limit for this request.")


class BytesResponse(Response):
    """A response with a complete body. Builds its headers in a third of the time that starlette's own class takes."""

    def __init__(self, body: bytes | memoryview, media_type: str, status: int = 200) -> None:
        self.status_code = status
        self.background = None
        self.body = body
        self.raw_headers = [
            (b"content-type", media_type.encode("latin-1")),
            (b"content-length", b"%d" % len(body)),
        ]
