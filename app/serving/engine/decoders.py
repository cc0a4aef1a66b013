"""Threads that decode images beside the event loop: one for small uploads, one for large ones.

Large work waits behind large work only, so that a photograph does not delay small images.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

_SMALL_BYTES = 256 * 1024  # up to a photograph from a form


class Decoders:
    """Runs decoding work in two thread pools."""

    def __init__(self, *, deadline_s: float) -> None:
        """Work that has not begun after `deadline_s` seconds is not done any more."""
        self._deadline_s = deadline_s
        self._small_pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode-small")
        self._large_pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode-large")

    async def run(self, size: int, work: Callable[..., Result], *arguments: object) -> Result:
        """The result of `work(*arguments)` for an upload of `size` bytes. Raises TimeoutError after the deadline."""
        pool = self._small_pool if size <= _SMALL_BYTES else self._large_pool
        deadline = time.monotonic() + self._deadline_s
        return await asyncio.get_running_loop().run_in_executor(pool, _run_before, deadline, work, *arguments)

    def close(self) -> None:
        self._small_pool.shutdown(wait=False, cancel_futures=True)
        self._large_pool.shutdown(wait=False, cancel_futures=True)


def _run_before(deadline: float, work: Callable[..., Result], *arguments: object) -> Result:
    if time.monotonic() > deadline:
        raise TimeoutError
    return work(*arguments)
