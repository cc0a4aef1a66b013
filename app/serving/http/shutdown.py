"""Stopping without failing anyone: after SIGTERM new work is refused for a while, then the server closes.

The probe /readyz turns 503 at once, so that load balancers look elsewhere; what was accepted is finished; connections are
closed with their next answer rather than under a client that is about to use them again.
"""

import asyncio
import signal
import threading
from types import FrameType


class Draining:
    """Whether the server is on its way out."""

    def __init__(self) -> None:
        self.on = False

    def begin_on_sigterm(self, seconds: float) -> None:
        """From now on, let SIGTERM drain for `seconds` before it does what it did before. Elsewhere than in the main
        thread, where signals cannot be handled, nothing happens.

        To be called with a running event loop, once the server has installed its own handler.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        before = signal.getsignal(signal.SIGTERM)

        def close(number: int, frame: FrameType | None) -> None:
            if callable(before):
                before(number, frame)

        def drain(number: int, frame: FrameType | None) -> None:
            if self.on:  # asked twice: at once
                close(number, frame)
                return
            self.on = True
            loop.call_soon_threadsafe(loop.call_later, seconds, close, number, None)

        signal.signal(signal.SIGTERM, drain)
