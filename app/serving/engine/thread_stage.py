"""A thread that works beside the event loop on work whose cost is known before: arrays, or pictures of responses."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import get_native_id
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

from app.serving.engine.admission import WorkQueue

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_WAIT = 0.2  # of the deadline: the longest wait before work is refused
_NICE = 5  # the event loop goes first: beside arrays of 12,000 images, p99 is 14 ms for a small image in place of 21
_MAX_TURN_S = 0.01  # the longest wait for an iteration of the event loop, which may be long where many requests come


class Deadline(NamedTuple):
    """The time of the event loop by which a request must be answered."""

    loop: asyncio.AbstractEventLoop
    due: float

    def check(self) -> None:
        """Wait until the event loop has done what is ready, and raise TimeoutError after the deadline.

        Long work on a thread calls this at least every 20 ms. Without the wait, the event loop would wait for the interpreter's
        lock each time it has read or sent something, as long as the thread computes: beside JSON of 1,000 images, p99 is 50 ms
        for a small request in place of 15.
        """
        iteration = threading.Event()
        self.loop.call_soon_threadsafe(iteration.set)
        iteration.wait(_MAX_TURN_S)
        if self.loop.time() > self.due:
            raise TimeoutError


class ThreadStage:
    """One thread with a queue that is bounded in seconds of work. Belongs to one event loop."""

    def __init__(self, name: str, *, deadline_s: float) -> None:
        self._queue = WorkQueue(servers=1, max_wait_s=_WAIT * deadline_s)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name, initializer=_lower_priority)

    def check(self) -> None:
        """Raise Overloaded if the queue accepts no more work."""
        self._queue.check()

    async def run(
        self,
        expected_s: float,
        due: float,
        work: Callable[Concatenate[Deadline, Parameters], Result],
        *arguments: Parameters.args,
        **options: Parameters.kwargs,
    ) -> Result:
        """The result of `work(deadline, *arguments)`, which takes `expected_s` seconds if nothing else runs.

        `due` is a time of the event loop. It does not interrupt `work`, which has to call `deadline.check()`.

        Raises:
            Overloaded: the work that is queued would take longer than a share of the server's deadline.
            TimeoutError: `due` had passed when the work began, or at one of its checks.
        """
        self.check()
        return await self.run_next(expected_s, due, work, *arguments, **options)

    async def run_next(
        self,
        expected_s: float,
        due: float,
        work: Callable[Concatenate[Deadline, Parameters], Result],
        *arguments: Parameters.args,
        **options: Parameters.kwargs,
    ) -> Result:
        """As `run`, for a request on which the server has worked before. It is never refused: that work would be lost."""
        loop = asyncio.get_running_loop()
        deadline = Deadline(loop, due)

        def timed() -> Result:
            deadline.check()
            started = loop.time()
            try:
                return work(deadline, *arguments, **options)
            finally:
                loop.call_soon_threadsafe(self._queue.record, expected_s, loop.time() - started)

        with self._queue.count(expected_s):
            return await loop.run_in_executor(self._pool, timed)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class Stages(NamedTuple):
    """The threads of a server."""

    arrays: ThreadStage
    pictures: ThreadStage  # and everything else that is too long for the event loop

    def close(self) -> None:
        self.arrays.close()
        self.pictures.close()


def _lower_priority() -> None:
    """Lower the priority of the calling thread. Only Linux has priorities of threads."""
    if sys.platform == "linux":
        thread = get_native_id()
        with suppress(OSError):  # a sandbox may forbid it; an error here would end the thread
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICE)
