"""Connections under limits: uvicorn's HTTP protocol with caps on their number, on a request's head, and on its time.

Without them a client that sends a byte a second holds a connection for as long as it likes, one that sends headers without
end fills the memory, and one that never reads its answer keeps that and the connection. The time and the size of bodies are
the application's to limit. What is refused here is refused before there is a request, so its problem body names neither path
nor id.
"""

import fcntl
import sys
import termios
from asyncio import TimerHandle, Transport
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.serving.api.responses import json_bytes
from app.serving.errors import MEDIA_TYPE, InvalidBody, Problem, TooLarge, Unavailable
from app.serving.http.exchange import EXCHANGE, Exchange, write
from app.serving.http.limits import NO_ROOM, STATE_KEY, Answer, Header, Limits

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application


_HEAD_BYTES = 64 * 1024  # of a request that are no body: its head, trailers
_FRAMING = 8  # bytes of chunk framing that are allowed for each byte of a body: a byte a chunk takes six
_FRAMES = (b"content-length", b"transfer-encoding")
_SMALL_BODY = 64 * 1024
_SETTLE_S = 0.1  # an answer takes to fill the buffers of the network


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(*arguments, **options)
        self._limits: Limits = self.app_state[STATE_KEY]
        self._head_timer: TimerHandle | None = None
        self._answer_timer: TimerHandle | None = None
        self._answering: RequestResponseCycle | None = None  # the others wait in the pipeline
        self._body_bytes = 0  # received since the last answer
        self._body_room = 0  # taken for them
        self._no_room = False  # what comes of this body is dropped
        self._overhead = 0  # bytes received for this request that are no body
        self._turned_away: Answer | None = None  # what the request gets once its body is over
        self._replaying = False  # the parser reads a head that was read before

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self._refuse(Unavailable("There are too many connections."), b"retry-after: 1\r\n")
            return
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._give_room_back()
        if self._answer_timer is not None:
            self._answer_timer.cancel()
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True  # uvicorn tells the newest only
            self._answering.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._overhead += len(data)
        try:
            while data:
                data = self._feed(data)
        except httptools.HttpParserError:
            self.send_400_response("This is not HTTP/1.1.")
        else:
            if self._overhead > _HEAD_BYTES and not self.transport.is_closing():
                self._refuse(TooLarge(f"The request's head is larger than {_HEAD_BYTES:,} bytes."))
        if self._head_timer is None and self.timeout_keep_alive_task is None and not self._busy:
            self._start_timer()  # an empty line, or what is left of a body that was answered before its end

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._answer_timer is not None and not self.transport.is_closing():
            self._answer_timer.cancel()
            self._answer_timer = None

    def shutdown(self) -> None:
        super().shutdown()
        self._see_off()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._see_off()

    def on_response_complete(self) -> None:
        self._give_room_back()
        super().on_response_complete()
        self._see_off()

    def on_message_begin(self) -> None:
        if self._replaying:
            return
        self._unset_keepalive_if_required()
        super().on_message_begin()
        if self._head_timer is None and not self._busy:
            self._start_timer()

    def on_url(self, url: bytes) -> None:
        if not self._replaying:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._replaying:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._replaying:
            self._replaying = False
            return
        self._overhead = 0
        self._turned_away = self._turn_away() if self._limits.crowded() else None
        if self._turned_away is None:
            self._stop_timer()
            self._no_room = False
            super().on_headers_complete()
            if self._limits.direct:
                self.scope["extensions"] = {EXCHANGE: Exchange(self.cycle)}  # type: ignore[dict-item]

    def on_body(self, body: bytes) -> None:
        self._overhead -= (1 + _FRAMING) * len(body)
        if self._turned_away is None and not self.cycle.response_complete and self._has_room(len(body)):
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._turned_away is not None:
            self._overhead = 0
            self._stop_timer()
            self._answer(*self._turned_away)
            self._turned_away = None
        elif not self.parser.should_upgrade():  # else the parser only stops here; the body is still to come
            self._overhead = 0
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidBody(msg))

    def _turn_away(self) -> Answer | None:
        """The answer to a request that can be refused here, without the cost of a task and of all that it would pass: one that
        nothing on this connection has to wait for, and whose body is small and of known length."""
        idle = self.cycle is None or self.cycle.response_complete
        if not idle or self.transport.is_closing() or self.flow.write_paused:
            return None
        if self.expect_100_continue or self.parser.should_upgrade():
            return None
        sizes = [value for name, value in self.headers if name in _FRAMES]
        if len(sizes) != 1 or not sizes[0].isdigit() or int(sizes[0]) > self._limits.dropped_bytes:
            return None
        path = self.url.partition(b"?")[0]
        method = self.parser.get_method().decode("ascii")
        return self._limits.turn_away({**self.scope, "method": method, "path": path.decode("latin-1"), "raw_path": path})

    def _answer(self, status: int, headers: list[Header], body: bytes) -> None:
        stays = self.parser.should_keep_alive()
        write(self.transport, status, [*self.server_state.default_headers, *headers], body, stays=stays)
        self.on_response_complete()
        if self._limits.breather is not None:
            self._limits.breather.take(self.loop)

    def _feed(self, data: bytes) -> bytes:
        """Parse -> what is left of `data`: what follows a head that offered an Upgrade. None is ever taken up, but the parser
        stops there, body or not: another one gets a head that frames the same body, and offers nothing."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            framing = [name + b": " + value for name, value in self.headers if name in _FRAMES]
            self.parser = httptools.HttpRequestParser(self)
            self._replaying = True
            self.parser.feed_data(b"\r\n".join([b"POST / HTTP/1.1", *(framing or [b"content-length: 0"]), b"\r\n"]))
            return data[stop.args[0] :]
        return b""

    @property
    def _busy(self) -> bool:
        """Whether a request is being answered."""
        return self._answering is not None and not self._answering.response_complete

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: "ASGI3Application") -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _has_room(self, size: int) -> bool:
        """Whether so many bytes more of a body can be kept. If not, whoever waits for them is told, and answers."""
        self._body_bytes += size
        if self._body_bytes > _SMALL_BODY and not self._no_room:
            taken, self._body_room = self._body_room, self._body_bytes - _SMALL_BODY
            if not self._limits.body_room.take(self._body_room - taken):
                self._give_room_back()
                self._no_room = True
                self.cycle.scope["state"][NO_ROOM] = True
                self.cycle.message_event.set()
        return not self._no_room

    def _give_room_back(self) -> None:
        if self._body_room:
            self._limits.body_room.give_back(self._body_room)
        self._body_bytes = self._body_room = 0

    def _refuse(self, problem: Problem, headers: bytes = b"") -> None:
        asked = [cycle for cycle in (self._answering, *(cycle for cycle, _ in reversed(self.pipeline))) if cycle is not None]
        asked = [cycle for cycle in asked if not (cycle.response_complete or cycle.more_body)]
        if asked:  # what was asked before gets its answer, and the connection ends with it
            asked[-1].keep_alive = False
            if self.pipeline and self.pipeline[0][0].more_body:
                self.pipeline.popleft()
            self.flow.pause_reading()
            self._stop_timer()
            return
        if self._answering is not None and self._answering.response_started and not self._answering.response_complete:
            self._close()  # there is an answer already, given before the request was over
            return
        body = json_bytes(problem.body("", ""))
        head = b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %d\r\nconnection: close\r\n%s\r\n"
        reason = problem.title.encode()
        self.transport.write(head % (problem.status, reason, MEDIA_TYPE.encode(), len(body), headers) + body)
        self._close()

    def _close(self) -> None:
        self.transport.close()
        self._see_off()

    def _see_off(self) -> None:
        """A connection that closes does so once all is read; whoever does not read is not waited for."""
        if self.transport.is_closing():
            self._watch_reader()

    def _watch_reader(self) -> None:
        if self._answer_timer is None:
            self._answer_timer = self.loop.call_later(_SETTLE_S, self._await_reader)

    def _await_reader(self) -> None:
        self._answer_timer = self.loop.call_later(self._limits.answer_timeout_s, self._judge_reader, self._unread())

    def _judge_reader(self, unread: int) -> None:
        """Give up on a client that has read nothing since there were so many bytes to read."""
        if self._unread() >= unread:
            self.transport.abort()
        else:
            self._await_reader()

    def _unread(self) -> int:
        """Bytes that the client has yet to take: those here, and those in the kernel, which holds megabytes."""
        try:
            queued = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        except (OSError, ValueError):  # closed
            queued = b""
        return self.transport.get_write_buffer_size() + int.from_bytes(queued, sys.byteorder)

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(self._limits.head_timeout_s, self._close)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
