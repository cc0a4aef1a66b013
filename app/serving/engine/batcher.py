"""A micro-batcher for asyncio: jobs in, results out, with as few calls of `run` as possible.

It has no timer. A job that is still alone at the end of the event loop's current iteration runs at once. Several jobs wait
until the loop brings no more of them, or until the batch is full: clients that were answered together send their next requests
during the iterations that follow, and a forward pass reads all the weights of the network, however few images it has.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

_IDLE_ITERATIONS = 2  # without a new job: a request that is received in one iteration of the loop submits its job in the next

Job = TypeVar("Job")
Result = TypeVar("Result")


class _Waiting(NamedTuple, Generic[Job, Result]):
    job: Job
    size: int
    future: asyncio.Future[Result]
    deadline: float


class Batcher(Generic[Job, Result]):
    """Groups jobs that wait at the same time. Belongs to one event loop."""

    def __init__(self, run: Callable[[list[Job]], Sequence[Result]], *, max_batch_size: int) -> None:
        """`run` maps jobs to their results, in order."""
        self._run = run
        self._max_batch_size = max_batch_size
        self._waiting: deque[_Waiting[Job, Result]] = deque()
        self._depth = 0
        self._flushing = False
        self._idle_iterations = 0  # since the newest job

    @property
    def depth(self) -> int:
        """The sum of the sizes of all waiting jobs."""
        return self._depth

    def submit(self, job: Job, size: int, *, deadline: float = math.inf) -> asyncio.Future[Result]:
        """The future result of `job`, which takes `size` of the `max_batch_size`.

        Its exception is what `run` raised for the batch, or a TimeoutError if the batch would begin after `deadline`, a time of
        the event loop's clock.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append(_Waiting(job, size, future, deadline))
        self._depth += size
        self._idle_iterations = 0
        if not self._flushing:
            self._flushing = True
            loop.call_soon(self._flush, loop)
        return future

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run one batch, unless more jobs are to be expected. The loop serves sockets between two calls."""
        if len(self._waiting) > 1 and self._depth < self._max_batch_size and self._idle_iterations < _IDLE_ITERATIONS:
            self._idle_iterations += 1
        elif batch := self._take(loop.time()):
            self._run_batch(batch)
        if self._waiting:
            loop.call_soon(self._flush, loop)
        else:
            self._flushing = False

    def _take(self, now: float) -> list["_Waiting[Job, Result]"]:
        """Remove and return the oldest jobs that fit one batch, at least one; drop cancelled jobs and fail late ones."""
        batch: list[_Waiting[Job, Result]] = []
        remaining = self._max_batch_size
        while self._waiting:
            first = self._waiting[0]
            size = first.size
            if first.future.cancelled():
                pass
            elif now > first.deadline:
                first.future.set_exception(TimeoutError())
            elif size > remaining and batch:
                break
            else:
                remaining -= size
                batch.append(first)
            self._waiting.popleft()
            self._depth -= size
        return batch

    def _run_batch(self, batch: list["_Waiting[Job, Result]"]) -> None:
        try:
            results = self._run([waiting.job for waiting in batch])
        except Exception as error:  # it belongs to the waiting callers
            for waiting in batch:
                waiting.future.set_exception(error)
            return
        for waiting, result in zip(batch, results, strict=True):
            waiting.future.set_result(result)
