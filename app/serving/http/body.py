"""Request bodies: an ASGI `receive` in, complete bytes and form parts out, under limits of size, memory and time."""

import asyncio
import re
import time
from collections.abc import Callable, Coroutine, Generator, Mapping
from types import coroutine
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from app.serving.errors import InvalidBody, RequestTimeout, TooLarge, Unavailable

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_DISCARDED_BODY_BYTES = 2**30  # of a request that was answered before its body was complete

_MIN_RATE, _SLOW_S = 4 * 1024, 20.0  # bytes a second, and the seconds for which a client may send more slowly
_SMALL_BODY_BYTES = 64 * 1024  # of each body that need no reservation
_RATE, _BURST = 64 * 2**20, 16 * 2**20  # bytes a second, which take a fifth of a core, and bytes that are read without a pause
_MAX_NAME_LENGTH = 255
_MAX_TYPE_LENGTH = 1024  # of a Content-Type or Content-Disposition header


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
        """`rate` in bytes a second; after a pause, `burst` bytes may be read at once."""
        self._rate = rate
        self._burst_s = burst / rate
        self._clock = clock
        self._due = 0.0  # time at which the bytes that were read so far are within the rate

    def delay(self, size: int) -> float:
        """Count `size` bytes that were read. Returns the seconds for which the connection may not be read again."""
        now = self._clock()
        self._due = max(self._due, now - self._burst_s) + size / self._rate
        return max(0.0, self._due - now)


class LimitedReceive:
    """The ASGI `receive` of one request, with a timeout on progress, limits of size and rate, and a share of the budget."""

    __slots__ = ("_budget", "_due", "_limit", "_rate", "_receive", "_reserved", "_timeout_s", "complete", "received")

    def __init__(self, receive: Receive, budget: ByteBudget, rate: ByteRate, *, limit: int | None, timeout_s: float) -> None:
        """`limit`: most bytes of the body, None for no limit here; `timeout_s`: longest time in which nothing is received."""
        self._receive = receive
        self._budget = budget
        self._rate = rate
        self._limit = limit
        self._timeout_s = timeout_s
        self._reserved = 0
        self._due = 0.0  # time by which more must have been received; 0 before the first part of a body
        self.received = 0
        self.complete = False

    async def __call__(self) -> Message:
        """The next message.

        Raises:
            RequestTimeout: the client sent nothing for `timeout_s` seconds, or sent more slowly than _MIN_RATE for _SLOW_S.
            TooLarge: the body exceeds the limit.
            Unavailable: the budget is exhausted.
        """
        if self.complete:  # what follows is the disconnect, however long that takes
            return await self._receive()
        try:
            message = await _receive_within(self._receive, self._seconds_left())
        except TimeoutError:
            raise RequestTimeout(self._timeout_message()) from None
        self.complete = not message.get("more_body", False)
        size = len(message.get("body", b""))
        self.received += size
        if not self.complete:
            latest = time.monotonic() + _SLOW_S
            self._due = min((self._due or latest) + size / _MIN_RATE, latest)
        if self._limit is not None and self.received > self._limit:
            raise too_large(self._limit)
        if self.received > _SMALL_BODY_BYTES:
            self._reserve()
            if delay := self._rate.delay(size):
                self._due += delay
                await asyncio.sleep(delay)
        return message

    def _seconds_left(self) -> float:
        if not self._due:
            return self._timeout_s
        return max(0.0, min(self._timeout_s, self._due - time.monotonic()))

    def _timeout_message(self) -> str:
        if self._due and time.monotonic() >= self._due:
            return f"The body arrives at less than {_MIN_RATE:,} bytes a second."
        return f"Nothing of the body was received for {self._timeout_s:g} seconds."

    def release(self) -> None:
        """Give the reservation back, once nothing refers to the body."""
        self._budget.release(self._reserved)
        self._reserved = 0

    def _reserve(self) -> None:
        size = self.received - _SMALL_BODY_BYTES
        if not self._budget.acquire(size - self._reserved):
            self.release()
            raise Unavailable("Too many large bodies are being received.", {"retry-after": "1"})
        self._reserved = size


async def _receive_within(receive: Receive, timeout_s: float) -> Message:
    """`receive()` with a timeout, which is only started when the message is not there yet. Raises TimeoutError.

    Nearly always it is there. asyncio.timeout costs 4.8 us, 5 % of a small request.
    """
    pending: Any = receive()
    try:
        first = pending.send(None)
    except StopIteration as finished:
        message: Message = finished.value
        return message
    async with asyncio.timeout(timeout_s):
        return await _resume(pending, first)


@coroutine
def _resume(pending: Coroutine[Any, Any, Message], first: object) -> Generator[Any, Any, Message]:
    """Continue a coroutine that has been started by hand and waits on `first`."""
    try:
        yield first
    except BaseException:
        pending.close()
        raise
    return (yield from pending.__await__())


class Part(NamedTuple):
    """One uploaded file: its name as the client gave it, its declared type ("" where none), its bytes."""

    name: str
    content_type: str
    data: bytes


def declared_length(headers: Mapping[bytes, bytes]) -> int:
    """The length of the body as its head declares it; 0 where it declares none."""
    declared = headers.get(b"content-length", b"")
    return int(declared) if declared.isdigit() else 0


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], *, limit: int) -> bytes | bytearray:
    """The whole body of a request, a bytearray if it came in several messages: to copy 80 MB takes the event loop 80 ms.

    Raises:
        TooLarge: more than `limit` bytes were declared or sent.
        ClientDisconnect: the client closed the connection.
    """
    if declared_length(headers) > limit:
        raise too_large(limit)
    message = await receive()
    first: bytes = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body", False) and len(first) <= limit:
        return first  # nearly always the body is one message
    body = bytearray()
    while message["type"] == "http.request":
        body += message.get("body", b"")
        if len(body) > limit:
            raise too_large(limit)
        if not message.get("more_body", False):
            return body
        message = await receive()
    raise ClientDisconnect


def parse_form(body: bytes, content_type: str, *, max_parts: int) -> list[Part]:
    """The parts named `file` of a multipart/form-data body, in order.

    Raises:
        InvalidBody: the form is malformed or has no such part.
        TooLarge: it has more than `max_parts` parts.
    """
    if len(content_type) > _MAX_TYPE_LENGTH:  # parsing 32 KiB takes 80 ms
        raise InvalidBody(f"The content type is longer than {_MAX_TYPE_LENGTH:,} characters.")
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise InvalidBody("The multipart content type names no boundary.")
    reader = _FormReader(max_parts)
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError):
        raise InvalidBody("The form is malformed, or its boundary is not the one that the content type names.") from None
    if not reader.parts:
        raise InvalidBody("The form has no part named 'file'; send one as `curl -F file=@seven.png`.")
    return reader.parts


class _FormReader:
    """Collects the parts that the multipart parser reports."""

    def __init__(self, max_parts: int) -> None:
        self.parts: list[Part] = []
        self._max_parts = max_parts
        self._part_count = 0
        self._headers: dict[bytes, bytes] = {}
        self._field = b""
        self._value = b""
        self._data: list[bytes] = []

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._part_data,
            "on_part_end": self._end,
        }

    def _begin(self) -> None:
        self._part_count += 1
        if self._part_count > self._max_parts:
            raise TooLarge(f"The form has more than {self._max_parts} parts; send the images in several requests.")
        self._headers, self._data = {}, []

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def _end(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")[:_MAX_TYPE_LENGTH]
        _, options = parse_options_header(disposition)
        if options.get(b"name") != b"file":
            return
        name = printable_name(_file_name(disposition, options)) or f"file {len(self.parts) + 1}"
        content_type = self._headers.get(b"content-type", b"").decode("latin-1")
        self.parts.append(Part(name, media_type(content_type), b"".join(self._data)))


_EXTENDED_NAME = re.compile(rb";\s*filename\*\s*=\s*utf-8'[^']*'([^;\s]*)", re.IGNORECASE)


def _file_name(disposition: bytes, options: Mapping[bytes, bytes]) -> str:
    """`filename*` as RFC 8187 writes names that are not ASCII, which python-multipart leaves out; else `filename`."""
    if extended := _EXTENDED_NAME.search(disposition):
        return unquote(extended[1].decode("latin-1"), errors="replace")
    return options.get(b"filename", b"").decode("utf-8", "replace")


def media_type(content_type: str) -> str:
    """The media type of a Content-Type header, lower case, without parameters: `image/png` for `Image/PNG; q=1`."""
    return content_type.partition(";")[0].strip().lower()


def printable_name(name: str) -> str:
    """A client's file name for responses and logs: its printable characters, at most 255."""
    return "".join(char for char in name if char.isprintable())[:_MAX_NAME_LENGTH]


def too_large(limit: int) -> TooLarge:
    """The 413 for a body of more than `limit` bytes."""
    return TooLarge(f"The body is larger than {limit:,} bytes, the limit for this request.")
