"""A micro-batcher for asyncio: jobs in, results out, as few calls of `run` as possible. Knows no torch and no HTTP.

There is no timer. The first job asks the event loop for a flush at the end of its current round; whatever has arrived by
then goes together. Under load, batches grow by themselves, because jobs gather while one batch runs; an idle server
answers at once.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class _Waiting(NamedTuple, Generic[Job, Result]):
    job: Job
    future: asyncio.Future[Result]
    deadline: float


class Batcher(Generic[Job, Result]):
    """Groups jobs that wait at the same time. All methods belong to one event loop."""

    def __init__(
        self, run: Callable[[list[Job]], Sequence[Result]], size: Callable[[Job], int], *, max_batch_size: int
    ) -> None:
        """`run` maps jobs to as many results, in order; `size` says how much of `max_batch_size` a job takes."""
        self._run = run
        self._size = size
        self._max_batch_size = max_batch_size
        self._waiting: deque[_Waiting[Job, Result]] = deque()
        self._depth = 0
        self._flushing = False

    @property
    def depth(self) -> int:
        """How much waits, in the unit of `size`."""
        return self._depth

    async def submit(self, job: Job, *, deadline: float = math.inf) -> Result:
        """The job's result. Raises what `run` raised for the job's batch.

        Raises:
            TimeoutError: the job's turn came only after `deadline`, a time of the event loop's clock.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append(_Waiting(job, future, deadline))
        self._depth += self._size(job)
        if not self._flushing:
            self._flushing = True
            loop.call_soon(self._flush, loop)
        return await future

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run one batch; leave the rest to the next round, so that the loop serves its sockets in between."""
        batch = self._take(loop.time())
        if batch:
            self._answer(batch)
        if self._waiting:
            loop.call_soon(self._flush, loop)
        else:
            self._flushing = False

    def _take(self, now: float) -> list["_Waiting[Job, Result]"]:
        """The longest waiting jobs that fit one batch, at least one; jobs that are too late or not wanted any more go."""
        batch: list[_Waiting[Job, Result]] = []
        room = self._max_batch_size
        while self._waiting:
            first = self._waiting[0]
            size = self._size(first.job)
            if first.future.cancelled():
                pass
            elif now > first.deadline:
                first.future.set_exception(TimeoutError())
            elif size > room and batch:
                break
            else:
                room -= size
                batch.append(first)
            self._waiting.popleft()
            self._depth -= size
        return batch

    def _answer(self, batch: list["_Waiting[Job, Result]"]) -> None:
        try:
            results = self._run([waiting.job for waiting in batch])
        except Exception as error:  # whatever it is, it belongs to those who wait
            for waiting in batch:
                waiting.future.set_exception(error)
            return
        for waiting, result in zip(batch, results, strict=True):
            waiting.future.set_result(result)
