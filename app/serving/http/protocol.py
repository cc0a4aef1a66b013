"""uvicorn's HTTP/1.1 protocol with the limits that uvicorn does not have.

Added here: a maximum number of connections (503), a maximum size (413) and duration (408) of a request's head, write timeouts
for clients that do not read or read slowly, limits on a body that is received after its request was answered, problem bodies
for malformed requests, responses to a client that has closed its sending side, and the body after an Upgrade header, which
uvicorn loses (https://github.com/Kludex/uvicorn/discussions/2722). Trailers are read and dropped.

Names of uvicorn that its documentation does not promise, all used in this file alone: `HttpToolsProtocol`; its attributes
`parser`, `scope`, `cycle`, `pipeline` and methods `on_response_complete`, `_unset_keepalive_if_required`; and of a cycle (a
request with its response) `response_started`, `response_complete`, `disconnected`, `keep_alive`, `default_headers`. The other
methods are callbacks of asyncio and httptools.
"""

import enum
from asyncio import TimerHandle, Transport, get_running_loop
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import httptools
from starlette.types import Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.serving.errors import Problem, RequestTimeout, TooLarge
from app.serving.http.body import MAX_DISCARDED_BODY_BYTES
from app.serving.http.connections import PROBE_PATHS, ConnectionLimits, HeldTransport
from app.serving.http.problem_responses import last_response, parser_problem, too_many_connections
from app.serving.http.sockets import set_write_timeout
from app.serving.http.upgrade import SkipFirstHead, head_without_upgrade
from app.serving.telemetry.metrics import record_rejection

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

WRITE_RESPONSE = "oddigit.write_response"  # key of an ASGI extension; see `LimitedProtocol.write_response`

_MAX_HEAD_BYTES = 32 * 1024  # of head and trailers, and of chunk framing beyond its allowance
_SMALL_HEAD_BYTES, _HEAD_COST = 4 * 1024, 8  # a byte of a larger head counts as 8 bytes of a body that is discarded
_MAX_FIELDS = 100  # header fields of a request, and trailers
_UNLIMITED_BYTES = 64 * 1024  # of each body that are read at any rate
_PARSED_PIECE_BYTES = 2048  # that are parsed at once: fifty of the smallest requests
_FRAMING_ALLOWANCE = 8  # bytes of chunk framing for each byte of the body; chunks of one byte take six


class _Phase(enum.Enum):
    """How much of the newest request has been received."""

    IDLE = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()


class LimitedProtocol(HttpToolsProtocol):
    """One connection. Requests that are received while another is answered wait in uvicorn's `pipeline`."""

    def __init__(self, *arguments: Any, limits: ConnectionLimits, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*arguments, **options)
        self._limits = limits
        self._phase = _Phase.IDLE
        self._timer: TimerHandle | None = None  # for the head, or for the rest of a body that is discarded
        self._active: RequestResponseCycle | None = None  # the request that is being answered, or was answered last
        self._failure: Problem | None = None  # the reply to a malformed request, sent after the responses before it
        self._non_body_bytes = self._body_bytes = self._fields = self._costly_bytes = 0
        self._unparsed = b""
        self._at_end = self._probes_only = False

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        self._held = HeldTransport(transport, self._limits.write_timeout_s)
        super().connection_made(self._held)
        set_write_timeout(transport.get_extra_info("socket"), self._limits.write_timeout_s)
        self._limits.open.add(self._held)
        excess = self._limits.open.count - self._limits.max_connections
        self._probes_only = excess > 0 and not self._limits.open.evict()
        if self._probes_only and excess > self._limits.probe_connections:
            self._send_failure(too_many_connections())
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._limits.open.remove(self._held)
        self._stop_timer()
        if self._active is not None:
            self._active.disconnected = True  # uvicorn tells the newest request only
        self._held.stop_timers()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn leaves this timer after an error
        self.pipeline.clear()
        self._unparsed, self._active = b"", None
        self.scope = self.cycle = None  # type: ignore[assignment]  # both refer to this object

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._failure is not None:
            return
        self._unparsed += data
        self._limits.open.reads.parse(self._held, self._parse_pieces, self._send_failure, len(data))

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client has closed its sending side. Returns whether to keep the transport open, to answer complete requests."""
        self._at_end = True
        return self._awaits_response or bool(self._unparsed)

    def _parse_pieces(self) -> None:
        """Parse what was received until a request waits for the one before it; the rest is parsed when none waits any more.

        Otherwise a client could fill the memory with thousands of requests.
        """
        view = memoryview(self._unparsed)
        while view and not self.pipeline and self._failure is None:
            size = self._piece_bytes(len(view))
            self._parse_piece(view[:size])
            view = view[size:]
        self._unparsed = bytes(view) if self._failure is None else b""
        (self._held.hold if self._unparsed else self._held.release)("unparsed")
        if self._costly_bytes:
            self._held.limit(self._limits.rate, self._costly_bytes)
            self._costly_bytes = 0
        if self._phase is _Phase.BODY:
            self._limits.open.reads.begin_wait(self._held)
            if self._active is self.cycle:
                self._limits.open.begin_wait(self._held)
        if self._at_end and not self._awaits_response:
            self._held.close()
        elif self._timer is None and not self._is_answering:
            self._start_timer()

    def _piece_bytes(self, available: int) -> int:
        """How much to parse at once: the rest of a body whose length is known, or a piece that may hold whole requests."""
        if available <= _PARSED_PIECE_BYTES or self._phase is not _Phase.BODY:
            return _PARSED_PIECE_BYTES
        declared = dict(self.scope["headers"]).get(b"content-length")
        # chunked: larger, because uvicorn copies what it has of the body for each piece
        return 8 * _PARSED_PIECE_BYTES if declared is None else max(_PARSED_PIECE_BYTES, int(declared) - self._body_bytes)

    def _parse_piece(self, piece: memoryview) -> None:
        self._non_body_bytes += len(piece)
        try:
            while piece:
                piece = self._parse(piece)
        except httptools.HttpParserError as error:
            self._fail(parser_problem(error))
        else:
            if self._non_body_bytes > _MAX_HEAD_BYTES:
                self._fail(TooLarge(f"The request's head is larger than {_MAX_HEAD_BYTES:,} bytes."))
            self._non_body_bytes = max(0, self._non_body_bytes)  # an allowance that is left is not for trailers

    def on_message_begin(self) -> None:
        self._phase, self._fields = _Phase.HEAD, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._probes_only and not url.partition(b"?")[0].endswith(PROBE_PATHS):
            raise too_many_connections()  # stops the parser
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        if self._fields > _MAX_FIELDS:
            raise TooLarge(f"The request has more than {_MAX_FIELDS} header fields.")
        if self._phase is not _Phase.BODY:  # trailers are dropped
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()  # raises for a target that is no URL: then there is no cycle, and the head is refused
        self._phase = _Phase.BODY
        if self._non_body_bytes > _SMALL_HEAD_BYTES and not self._held.is_new:
            self._costly_bytes += _HEAD_COST * self._non_body_bytes
        self._held.is_new = False
        self._non_body_bytes = self._body_bytes = self._fields = 0
        self._stop_timer()
        if not self._is_answering:
            self._active = self.cycle
        self.scope.setdefault("extensions", {})[WRITE_RESPONSE] = self.write_response  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        self._non_body_bytes -= (1 + _FRAMING_ALLOWANCE) * len(body)
        self._body_bytes += len(body)
        if self._body_bytes > _UNLIMITED_BYTES or self.cycle.response_complete:
            self._costly_bytes += len(body)
        if not self.cycle.response_complete:
            super().on_body(body)
        elif self._body_bytes > MAX_DISCARDED_BODY_BYTES:
            self._held.close()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # the parser only stops here; the body is still to come
        self._phase, self._non_body_bytes = _Phase.IDLE, 0
        self._stop_timer()
        self._limits.open.reads.end_wait(self._held)
        if not self.parser.should_keep_alive():  # a trailer may say so: the parser takes no more requests
            self.cycle.keep_alive = False
        super().on_message_complete()
        if self._is_answering:
            self._limits.open.end_wait(self._held)
        else:  # it was answered before its body was complete
            self._limits.open.begin_wait(self._held)

    def write_response(self, send: Send, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bool:
        """Write a complete response to a POST request, in place of two calls of the request's ASGI `send`.

        Returns False, and writes nothing, where `send` is needed: a middleware has put its own in place of uvicorn's, the
        request is not complete, the client reads slowly, or the connection is to close. uvicorn's `send` checks each header
        with two regular expressions; here the caller must give valid ones.
        """
        cycle = self.cycle
        is_replaced = getattr(send, "__self__", self) is not cycle
        if is_replaced or self._phase is not _Phase.IDLE or self._held.write_paused or not cycle.keep_alive:
            return False
        cycle.response_started = cycle.response_complete = True
        self._held.write_response(status, (*cycle.default_headers, *headers), body)
        self.on_response_complete()
        return True

    def pause_writing(self) -> None:
        self._held.start_write_timeout()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._held.extend_write_timeout()
        super().resume_writing()

    def on_response_complete(self) -> None:
        self._held.end_response()
        if self.pipeline:
            self._active = self.pipeline[-1][0]
        super().on_response_complete()
        if self._unparsed and not self.pipeline and not self._held.is_closing():
            self._parse_pieces()
        if self._at_end and self._failure is None and not self._awaits_response:
            self._held.close()
        if self._is_answering or self._held.is_closing():
            return
        if self._failure is not None:
            self._send_failure(self._failure)
            return
        if self._phase is _Phase.BODY:  # what is left of it is discarded; a head takes up to 45 KB
            kept = [header for header in self.scope["headers"] if header[0] == b"content-length"]
            self.scope["headers"][:] = kept  # type: ignore[index]  # in place: uvicorn has the list, too
        else:
            self._limits.open.begin_wait(self._held)
        if self._phase is _Phase.IDLE:
            self.scope = self.cycle = self._active = None  # type: ignore[assignment]  # frees 3 KB of an idle connection
        elif self._timer is None:
            self._start_timer()

    @property
    def _is_answering(self) -> bool:
        return self._active is not None and not self._active.response_complete

    @property
    def _awaits_response(self) -> bool:
        """Whether a request that is complete has not been answered."""
        return self._is_answering and (self._phase is not _Phase.BODY or self._active is not self.cycle)

    def _parse(self, data: memoryview) -> memoryview:
        """Parse `data`; returns what follows a head that offered an Upgrade, else nothing.

        The parser stops at such a head, whether a body follows or not. No upgrade is ever accepted, so a new parser is given a
        head that frames the same body and offers no upgrade.
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            self.parser = httptools.HttpRequestParser(SkipFirstHead(self))
            self.parser.feed_data(head_without_upgrade(self.scope["headers"]))
            return data[stop.args[0] :]
        return data[:0]

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
        self._failure, self._unparsed = problem, b""
        if self._phase is not _Phase.BODY or self.cycle is not self._active or not self.cycle.response_started:
            self._held.write(last_response(problem))
            record_rejection(problem.type, None if self._phase is _Phase.BODY else problem.status)
        self._held.close()

    def _start_timer(self) -> None:
        timeout_s = self._limits.discard_timeout_s if self._phase is _Phase.BODY else self._limits.head_timeout_s
        self._timer = get_running_loop().call_later(timeout_s, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        """408 for a head that did not arrive in time; without a head there is nothing to reply to."""
        if self._phase is _Phase.HEAD and not self._held.is_closing():
            self._send_failure(RequestTimeout(f"The request's head did not arrive within {self._limits.head_timeout_s:g} s."))
        else:
            self._held.close()
