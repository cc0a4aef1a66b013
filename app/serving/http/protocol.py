"""uvicorn's HTTP/1.1 protocol with the limits that uvicorn does not have.

Added here: a maximum number of connections (503), a maximum size (413) and duration (408) of a request's head, a write timeout
for clients that do not read, limits on a body that is received after its request was answered, problem bodies for malformed
requests, and the body behind an Upgrade header, which uvicorn loses (https://github.com/Kludex/uvicorn/discussions/2722).

Names of uvicorn that its documentation does not promise, all used in this file alone: `HttpToolsProtocol`; its attributes
`connections`, `transport`, `parser`, `headers`, `cycle`, `pipeline` and methods `on_response_complete`,
`_unset_keepalive_if_required`; and of a cycle (a request with its response) `response_started`, `response_complete`,
`disconnected`. The other methods are callbacks of asyncio and httptools.
"""

import enum
import logging
import resource
import socket
import sys
from asyncio import TimerHandle, Transport, get_running_loop
from typing import TYPE_CHECKING, Any, NamedTuple

import httptools
from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.serving.errors import MEDIA_TYPE, BadRequest, Problem, RequestTimeout, TooLarge, Unavailable
from app.serving.http.body import MAX_DISCARDED_BODY_BYTES

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

logger = logging.getLogger(__name__)

_MAX_HEAD_BYTES = 64 * 1024  # of a request without its body: head, trailers, chunk framing beyond the allowance
_FRAMING_ALLOWANCE = 8  # bytes of chunk framing for each byte of the body; chunks of one byte take six
_DISCARD_TIMEOUT_S = 60.0  # for the rest of a body whose request has been answered
_FRAMING_HEADERS = (b"content-length", b"transfer-encoding")
_RESERVED_FILES = 128  # open files that a process needs beside its connections
_RESPONSE = b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %d\r\nconnection: close\r\n%s\r\n"


class ConnectionLimits(NamedTuple):
    """Limits of each connection, and how many connections there may be."""

    max_connections: int = 4096
    head_timeout_s: float = 10.0
    write_timeout_s: float = 20.0


class _Phase(enum.Enum):
    """How much of the newest request has been received."""

    IDLE = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()


class LimitedProtocol(HttpToolsProtocol):
    """One connection. Requests that are received while another is answered wait in uvicorn's `pipeline`."""

    def __init__(self, *arguments: Any, limits: ConnectionLimits = ConnectionLimits(), **options: Any) -> None:  # noqa: ANN401, B008
        super().__init__(*arguments, **options)
        self._limits = limits
        self._phase = _Phase.IDLE
        self._timer: TimerHandle | None = None  # for the head, or for the rest of a body that is discarded
        self._active: RequestResponseCycle | None = None  # the request that is answered now, or was answered last
        self._failure: Problem | None = None  # the reply to a malformed request, sent after the responses before it
        self._non_body_bytes = 0
        self._discarded_bytes = 0

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _set_write_timeout(transport.get_extra_info("socket"), self._limits.write_timeout_s)
        if len(self.connections) > self._limits.max_connections:
            self._send_failure(Unavailable("There are too many connections.", {"retry-after": "1"}))
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self._active is not None:
            self._active.disconnected = True  # uvicorn tells the newest request only
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._failure is not None:
            return
        self._non_body_bytes += len(data)
        try:
            while data:
                data = self._parse(data)
        except httptools.HttpParserError:
            self._fail(BadRequest("The request is not valid HTTP."))
        else:
            if self._non_body_bytes > _MAX_HEAD_BYTES:
                self._fail(TooLarge(f"The request's head is larger than {_MAX_HEAD_BYTES:,} bytes."))
        if self._timer is None and not self._is_answering:
            self._start_timer()

    def on_message_begin(self) -> None:
        self._phase = _Phase.HEAD
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._phase = _Phase.BODY
        self._non_body_bytes = self._discarded_bytes = 0
        self._stop_timer()
        super().on_headers_complete()
        if not self._is_answering:
            self._active = self.cycle

    def on_body(self, body: bytes) -> None:
        self._non_body_bytes -= (1 + _FRAMING_ALLOWANCE) * len(body)
        if not self.cycle.response_complete:
            super().on_body(body)
            return
        self._discarded_bytes += len(body)
        if self._discarded_bytes > MAX_DISCARDED_BODY_BYTES:
            self.transport.close()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # the parser only stops here; the body is still to come
        self._phase = _Phase.IDLE
        self._non_body_bytes = 0
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self.pipeline:
            self._active = self.pipeline[-1][0]
        super().on_response_complete()
        if self._is_answering or self.transport.is_closing():
            return
        if self._failure is not None:
            self._send_failure(self._failure)
        elif self._phase is not _Phase.IDLE and self._timer is None:
            self._start_timer()

    @property
    def _is_answering(self) -> bool:
        return self._active is not None and not self._active.response_complete

    def _parse(self, data: bytes) -> bytes:
        """Parse `data`; returns what follows a head that offered an Upgrade, else nothing.

        The parser stops at such a head, whether a body follows or not. No upgrade is ever accepted, so a new parser is given a
        head that frames the same body and offers no upgrade.
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            framing = [name + b": " + value for name, value in self.headers if name in _FRAMING_HEADERS]
            self.parser = httptools.HttpRequestParser(_SkipFirstHead(self))
            self.parser.feed_data(b"\r\n".join([b"POST / HTTP/1.1", *(framing or [b"content-length: 0"]), b"\r\n"]))
            return data[stop.args[0] :]
        return b""

    def _fail(self, problem: Problem) -> None:
        """Reply with `problem` once the complete requests before it are answered, then close. Ignores all further data."""
        self._failure = problem
        self._stop_timer()
        if self._phase is _Phase.BODY and self.pipeline:
            self.pipeline.popleft()  # the malformed request itself, whose head was good
        elif self._phase is _Phase.BODY or not self._is_answering:
            self._send_failure(problem)

    def _send_failure(self, problem: Problem) -> None:
        """Write `problem` and close. If a response to the malformed request has begun, only close."""
        self._failure = problem
        if self._phase is not _Phase.BODY or self.cycle is not self._active or not self.cycle.response_started:
            body = to_json(problem.body("", ""))
            extra = b"".join(f"{name}: {value}\r\n".encode() for name, value in problem.headers.items())
            head = (problem.status, problem.title.encode(), MEDIA_TYPE.encode(), len(body), extra)
            self.transport.write(_RESPONSE % head + body)
        self.transport.close()

    def _start_timer(self) -> None:
        timeout_s = _DISCARD_TIMEOUT_S if self._phase is _Phase.BODY else self._limits.head_timeout_s
        self._timer = get_running_loop().call_later(timeout_s, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        """408 for a head that did not arrive in time; without a head there is nothing to reply to."""
        if self._phase is _Phase.HEAD and not self.transport.is_closing():
            self._send_failure(RequestTimeout(f"The request's head did not arrive within {self._limits.head_timeout_s:g} s."))
        else:
            self.transport.close()


class _SkipFirstHead:
    """Parser callbacks for a connection whose current head has been handled already: forwards all but the first head."""

    def __init__(self, protocol: LimitedProtocol) -> None:
        self._protocol = protocol
        self._skip = True
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete

    def on_message_begin(self) -> None:
        if not self._skip:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._skip:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._skip:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._skip:
            self._skip = False
        else:
            self._protocol.on_headers_complete()


def raise_open_file_limit(connections: int) -> int:
    """Raise this process's limit on open files as far as the system allows; returns how many of `connections` then fit.

    A server that runs out of open files cannot even refuse a connection.
    """
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (sys.maxsize if limit == resource.RLIM_INFINITY else limit for limit in limits)
    wanted = connections + _RESERVED_FILES
    if soft < wanted:
        soft = min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, limits[1]))
    if soft < wanted:
        fitting = max(1, soft - _RESERVED_FILES)
        logger.warning("the system allows %d open files: at most %d connections, not %d", soft, fitting, connections)
    return max(1, min(connections, soft - _RESERVED_FILES))


def _set_write_timeout(sock: socket.socket, seconds: float) -> None:
    """Let the kernel close the connection when the client has accepted no byte of pending data for `seconds` (Linux only)."""
    if sys.platform == "linux" and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, round(seconds * 1000)))
