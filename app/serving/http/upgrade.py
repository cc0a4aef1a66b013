"""Parsing after a request that offers an upgrade, which is never accepted: a substitute for its head, and parser callbacks."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.serving.http.protocol import LimitedProtocol


class SkipFirstHead:
    """Parser callbacks for a connection whose current head has been handled already: forwards all but the first head."""

    def __init__(self, protocol: "LimitedProtocol") -> None:
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


def head_without_upgrade(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The bytes of a request head without an upgrade, for the same body as `headers` declare."""
    framing = [b"%b: %b" % each for each in headers if each[0] in (b"content-length", b"transfer-encoding")]
    return b"\r\n".join([b"POST / HTTP/1.1", *(framing or [b"content-length: 0"]), b"\r\n"])
