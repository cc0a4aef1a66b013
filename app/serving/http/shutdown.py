"""Graceful shutdown: after SIGTERM the server keeps answering for a while, then it closes.

While draining, the readiness probes answer 503, so that load balancers send new clients elsewhere, and every response carries
`Connection: close`. Requests that still arrive are answered: a load balancer needs seconds to notice.
"""

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType


class Draining:
    """Whether the server is draining."""

    def __init__(self, on_close: Callable[[], None]) -> None:
        """`on_close` is called in the event loop when the drain ends, to end the work that is left."""
        self.on = False
        self._on_close = on_close

    def begin_on_sigterm(self, seconds: float) -> None:
        """On SIGTERM, drain for `seconds` and then call the handler that was installed before. A second SIGTERM ends the drain.

        Must be called in the event loop, after the server has installed its own handler. Does nothing outside the main thread,
        where Python allows no signal handlers.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        before = signal.getsignal(signal.SIGTERM)

        def close(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._on_close)
            if callable(before):
                before(number, frame)

        def drain(number: int, frame: FrameType | None) -> None:
            if self.on:
                close(number, frame)
                return
            self.on = True
            loop.call_soon_threadsafe(loop.call_later, seconds, close, number, None)

        signal.signal(signal.SIGTERM, drain)
