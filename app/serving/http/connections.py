"""The connections of a server: reading and writing of each, its timeouts, and the limits that all connections share."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import NamedTuple

from app.serving.errors import Problem
from app.serving.http.body import ByteRate
from app.serving.http.problem_responses import too_many_connections

PROBE_PATHS = (b"/livez", b"/readyz", b"/health/live", b"/health/ready")  # their ends: a prefix may precede them

_EVICT_AFTER_S = 0.25  # a connection that has waited this long for its client makes room for a new one
_SMALL_READ_BYTES = 32 * 1024
_MAX_WAITING_BYTES = 16 * 2**20  # received and not parsed yet, all new connections together; one has up to 256 KB
_MIN_WRITE_RATE = 16 * 1024  # bytes a second
_HIGH_WATER_BYTES = 64 * 1024  # asyncio's: the transport pauses writing when more than this waits to be sent
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_FINAL_HEAD = (b"HTTP/1.1 2", b"HTTP/1.1 3", b"HTTP/1.1 4", b"HTTP/1.1 5")  # 1xx is sent at once


class HeldTransport(asyncio.Transport):
    """Stands between uvicorn and a transport. While it is held, nothing is read. A client that reads slowly is disconnected.

    uvicorn writes a head and a body separately, and each write is a system call. Here a head is sent with the next data.
    Other methods than those that uvicorn calls are not passed on.
    """

    def __init__(self, transport: asyncio.Transport, write_timeout_s: float = 20.0) -> None:
        """`write_timeout_s`: how long a client may read nothing, or more slowly than _MIN_WRITE_RATE."""
        super().__init__()
        self._transport = transport
        self._write_timeout_s = write_timeout_s
        self._reasons: set[str] = set()  # why nothing is read now
        self._paused = False  # uvicorn wants nothing to be read
        self._head = b""  # the head of a response that was not sent yet
        self._hold_timer: asyncio.TimerHandle | None = None
        self._write_due = 0.0  # loop time by which the client must have read more; 0 before it reads slowly
        self._write_timer: asyncio.TimerHandle | None = None
        self.write_paused = False  # the write buffer is full
        self.is_new = True  # the head of the first request is not complete
        for method in (transport.abort, transport.is_closing, transport.get_extra_info):
            setattr(self, method.__name__, method)  # these are called for each request

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif isinstance(data, bytes) and data.startswith(_FINAL_HEAD) and data.endswith(b"\r\n\r\n"):
            self._head = data
            return
        self._transport.write(data)

    def write_response(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a complete response; none may have begun."""
        lines = [b"%b: %b\r\n" % header for header in headers]
        self._transport.write(b"%b%b\r\n%b" % (_STATUS_LINES[status], b"".join(lines), body))

    def end_response(self) -> None:
        """The response is complete: send its head if no body was added."""
        self._write_due = 0.0
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.end_response()
        self._transport.close()

    def start_write_timeout(self) -> None:
        """The write buffer is full: disconnect the client unless it reads on in time."""
        self.write_paused = True
        loop = asyncio.get_running_loop()
        self._write_due = self._write_due or loop.time() + self._write_timeout_s
        self._write_timer = loop.call_at(self._write_due, self._transport.abort)

    def extend_write_timeout(self) -> None:
        """The client has read most of the write buffer: give it time for the next part, if the response is not complete."""
        self.write_paused = False
        if self._write_timer is not None:
            self._write_timer.cancel()
        if self._write_due:
            latest = asyncio.get_running_loop().time() + self._write_timeout_s
            self._write_due = min(self._write_due + _HIGH_WATER_BYTES / _MIN_WRITE_RATE, latest)

    def stop_timers(self) -> None:
        """The connection is closed."""
        for timer in (self._write_timer, self._hold_timer):
            if timer is not None:
                timer.cancel()

    def hold(self, reason: str) -> None:
        """Read nothing until this reason is released."""
        self._reasons.add(reason)
        self._update()

    def release(self, reason: str) -> None:
        """Read on, unless there is another reason not to."""
        if reason in self._reasons:
            self._reasons.discard(reason)
            self._update()

    def limit(self, rate: ByteRate, size: int) -> None:
        """`size` bytes were read: read nothing until they are within the rate."""
        if seconds := rate.delay(size):
            self.hold("rate")
            if self._hold_timer is not None:
                self._hold_timer.cancel()
            self._hold_timer = asyncio.get_running_loop().call_later(seconds, self.release, "rate")

    def pause_reading(self) -> None:
        self._paused = True
        self._update()

    def resume_reading(self) -> None:
        self._paused = False
        self._update()

    def _update(self) -> None:
        if self.is_closing():
            return
        if self._reasons or self._paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()


Refuse = Callable[[Problem], None]


class _Waiting(NamedTuple):
    transport: HeldTransport
    work: Callable[[], None]
    refuse: Refuse
    size: int  # bytes that were received


class ReadScheduler:
    """Limits how many connections are read and parsed in one iteration of the event loop while they wait for data.

    It concerns connections that wait for their first request or for more of a body. Otherwise the first requests of 500 clients
    that connect at the same time are parsed in one iteration of 80 ms, and those of 4,000 are read in one of 300 ms. New
    connections are scheduled last in, first out: first in, first out would make a later client wait for thousands of others.
    Bodies are scheduled round-robin.
    """

    def __init__(self, parsed: int = 2, read: int = 16, max_bytes: int = _MAX_WAITING_BYTES) -> None:
        """In one iteration, at most `read` connections are read (fewer large reads), and at most `parsed` new ones are parsed.

        New connections that wait to be parsed hold at most `max_bytes` together.
        """
        self._most_parsed = self._parsed_left = parsed
        self._most_read, self._read_left = read, float(read)
        self._bytes_left = max_bytes
        self._read: dict[HeldTransport, None] = {}  # connections that are read now
        self._held_new: dict[HeldTransport, None] = {}  # new connections that are not read now; a stack
        self._held_bodies: dict[HeldTransport, None] = {}  # other connections that are not read now; a queue
        self._waiting: deque[_Waiting] = deque()

    def begin_wait(self, transport: HeldTransport) -> None:
        """This connection waits for its first request, or for more of a body; it may do so already."""
        if transport not in self._held_new and transport not in self._held_bodies:
            self._read[transport] = None

    def end_wait(self, transport: HeldTransport) -> None:
        """The request is complete, or the connection is closed."""
        for connections in (self._read, self._held_new, self._held_bodies):
            connections.pop(transport, None)
        transport.release("queue")

    def parse(self, transport: HeldTransport, work: Callable[[], None], refuse: Refuse, size: int) -> None:
        """Call `work`, which parses the `size` bytes that were received: now, or in a later iteration if the connection is new.

        Until then the transport is not read. Calls `refuse` instead if newer connections need the memory (`max_bytes`). Calls
        neither if the transport closes before.
        """
        if transport in self._read:
            self._count_read(size)
        if self._parsed_left or not transport.is_new:
            self._parsed_left -= transport.is_new
            work()
            return
        transport.hold("parsing")
        self._waiting.append(_Waiting(transport, work, refuse, size))
        self._bytes_left -= size
        while self._bytes_left < 0:
            oldest = self._waiting.popleft()
            self._bytes_left += oldest.size
            if not oldest.transport.is_closing():
                oldest.refuse(too_many_connections())

    def _count_read(self, size: int) -> None:
        """Count one read. After the last one of an iteration, the other connections are not read before the next iteration."""
        if self._read_left == self._most_read and not self._has_waiting:
            asyncio.get_running_loop().call_soon(self._begin_iteration)
        self._read_left -= max(1.0, size / _SMALL_READ_BYTES)
        if self._read_left <= 0:
            for transport in self._read:
                transport.hold("queue")
                (self._held_new if transport.is_new else self._held_bodies)[transport] = None
            self._read.clear()

    @property
    def _has_waiting(self) -> bool:
        return bool(self._held_new or self._held_bodies or self._waiting)

    def _resume(self, held: dict[HeldTransport, None], transport: HeldTransport) -> None:
        del held[transport]
        self._read[transport] = None
        transport.release("queue")

    def _begin_iteration(self) -> None:
        self._parsed_left, self._read_left = self._most_parsed, self._most_read
        if self._has_waiting:
            asyncio.get_running_loop().call_soon(self._begin_iteration)
        for _ in range(self._most_read // 2):
            if self._held_new:
                self._resume(self._held_new, next(reversed(self._held_new)))
            if self._held_bodies:
                self._resume(self._held_bodies, next(iter(self._held_bodies)))
        while self._waiting and self._parsed_left:
            newest = self._waiting.pop()
            self._bytes_left += newest.size
            if not newest.transport.is_closing():
                newest.transport.release("parsing")
                self._parsed_left -= 1
                newest.work()


class OpenConnections:
    """The connections of a server."""

    def __init__(self) -> None:
        self.count = 0
        self.reads = ReadScheduler()
        # Connections that wait for a request or for more of a body -> the loop time since when; the oldest is first.
        self._waiting: OrderedDict[HeldTransport, float] = OrderedDict()

    def add(self, transport: HeldTransport) -> None:
        """A client has connected; this connection waits for a request."""
        self.count += 1
        self.reads.begin_wait(transport)
        self.begin_wait(transport)

    def remove(self, transport: HeldTransport) -> None:
        """The connection is closed."""
        self.count -= 1
        self.reads.end_wait(transport)
        self.end_wait(transport)

    def begin_wait(self, transport: HeldTransport) -> None:
        """From now on this connection waits for a request, or for more of a body."""
        self._waiting[transport] = asyncio.get_running_loop().time()
        self._waiting.move_to_end(transport)

    def end_wait(self, transport: HeldTransport) -> None:
        """This connection has a complete request, or is closed."""
        self._waiting.pop(transport, None)

    def evict(self) -> bool:
        """Close the connection that has waited longest for its client, to make room. Returns whether one could be closed.

        At least one connection must wait.
        """
        while (oldest := next(iter(self._waiting))).is_closing():
            del self._waiting[oldest]
        if self._waiting[oldest] > asyncio.get_running_loop().time() - _EVICT_AFTER_S:
            return False
        del self._waiting[oldest]
        oldest.close()
        return True


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of each connection, and the limits and state that all connections of a server share."""

    max_connections: int = 4096
    probe_connections: int = 16  # beyond the maximum, for probes alone
    head_timeout_s: float = 10.0
    write_timeout_s: float = 20.0
    discard_timeout_s: float = 60.0  # for the rest of a body whose request has been answered
    rate: ByteRate = field(default_factory=ByteRate)  # of large bodies, large heads and discarded bodies
    open: OpenConnections = field(default_factory=OpenConnections)
