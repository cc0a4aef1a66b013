"""Connections under limits: uvicorn's HTTP protocol with caps on their number, on a request's head, and on its time.

Without them a client that sends a byte a second holds a connection for as long as it likes, and one that sends headers
without end fills the memory. The time and the size of bodies are the application's to limit. What is refused here is refused
before there is a request, so its problem body names neither path nor id.
"""

from asyncio import TimerHandle, Transport
from typing import Any, NamedTuple

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.serving.answers import json_bytes
from app.serving.errors import MEDIA_TYPE, BadBody, Problem, TooLarge, Unavailable

STATE_KEY = "oddigit_limits"

_HEAD_BYTES = 64 * 1024  # of a request that are no body: its head, trailers
_FRAMING = 8  # bytes of chunk framing that are allowed for each byte of a body: a byte a chunk takes six


class Limits(NamedTuple):
    """What the application hands over in its lifespan state, under STATE_KEY."""

    connections: int
    head_timeout_s: float


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(*arguments, **options)
        self._limits: Limits = self.app_state[STATE_KEY]
        self._head_timer: TimerHandle | None = None
        self._overhead = 0  # bytes received for this request that are no body
        self._upgrade_body: int | None = None  # bytes of body still to come after an Upgrade that is not taken up

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self._refuse(Unavailable("There are too many connections."), b"retry-after: 1\r\n")
            return
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._upgrade_body is not None:
            self._take_upgrade_body(data)
            return
        self._unset_keepalive_if_required()
        self._overhead += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            self._take_upgrade_body(data[stop.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("This is not HTTP/1.1.")
        else:
            if self._overhead > _HEAD_BYTES and not self.transport.is_closing():
                self._refuse(TooLarge(f"The request's head is larger than {_HEAD_BYTES:,} bytes."))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_timer is None:
            self._start_timer()

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._overhead = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._overhead -= (1 + _FRAMING) * len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._overhead = 0
        if self.parser.should_upgrade():  # the parser stops here, body or not; ours goes on
            self._upgrade_body = self._declared_length()
            if self._upgrade_body:
                return
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(BadBody(msg))

    def _declared_length(self) -> int:
        lengths = [value for name, value in self.headers if name == b"content-length"]
        return int(lengths[0]) if lengths and lengths[0].isdigit() else 0

    def _take_upgrade_body(self, data: bytes) -> None:
        """No protocol is ever changed to, so what follows the head of such a request is its body, and then the next one."""
        assert self._upgrade_body is not None
        body, rest = data[: self._upgrade_body], data[self._upgrade_body :]
        unfinished = self._upgrade_body > 0
        self._upgrade_body -= len(body)
        if body:
            HttpToolsProtocol.on_body(self, body)
        if self._upgrade_body == 0:
            if unfinished:
                HttpToolsProtocol.on_message_complete(self)
            self._upgrade_body = None
            self.parser = httptools.HttpRequestParser(self)
            if rest:
                self.data_received(rest)

    def _refuse(self, problem: Problem, headers: bytes = b"") -> None:
        body = json_bytes(problem.body("", ""))
        head = b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %d\r\nconnection: close\r\n%s\r\n"
        reason = problem.title.encode()
        self.transport.write(head % (problem.status, reason, MEDIA_TYPE.encode(), len(body), headers) + body)
        self.transport.close()

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(self._limits.head_timeout_s, self.transport.close)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
