"""A transport that sends the head of a response together with its body, and that this program can stop from being read."""

import asyncio
from typing import Any

_FINAL_HEAD = (b"HTTP/1.1 2", b"HTTP/1.1 3", b"HTTP/1.1 4", b"HTTP/1.1 5")  # 1xx is sent at once


class HeldTransport(asyncio.Transport):
    """Passes everything on to another transport. While it is held, nothing is read.

    uvicorn writes a head and a body separately, and each write is a system call. Here a head waits for what is written next.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._reasons: set[str] = set()  # for which it is held
        self._paused = False  # by uvicorn
        self._head = b""  # of a response, not sent yet
        for method in (transport.abort, transport.is_closing, transport.get_extra_info):
            setattr(self, method.__name__, method)  # these are called for each request

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif isinstance(data, bytes) and data.startswith(_FINAL_HEAD) and data.endswith(b"\r\n\r\n"):
            self._head = data
            return
        self._transport.write(data)

    def flush(self) -> None:
        """Send a head to which nothing was added: the response has no body."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def hold(self, reason: str) -> None:
        """Read nothing until this reason is released."""
        self._reasons.add(reason)
        self._update()

    def release(self, reason: str) -> None:
        """Read on, unless there is another reason not to."""
        if reason in self._reasons:
            self._reasons.discard(reason)
            self._update()

    def hold_for(self, seconds: float) -> None:
        """Read nothing for this time."""
        if seconds:
            self.hold("time")
            asyncio.get_running_loop().call_later(seconds, self.release, "time")

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

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._transport.set_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._transport.get_protocol()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._transport, name)
