"""A micro-batcher for asyncio: jobs in, results out, as few calls of `run` as possible. Knows no torch and no HTTP.

There is no timer. The first job asks the event loop for a flush at the end of its current round; whatever has arrived by
then goes together. Under load, batches grow by themselves, because jobs gather while one batch runs; an idle server
answers at once.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class Batcher(Generic[Job, Result]):
    """Groups jobs that wait at the same time. All methods belong to one event loop."""

    def __init__(
        self, run: Callable[[list[Job]], Sequence[Result]], size: Callable[[Job], int], *, max_batch_size: int
    ) -> None:
        """`run` maps jobs to as many results, in order; `size` says how much of `max_batch_size` a job takes."""
        self._run = run
        self._size = size
        self._max_batch_size = max_batch_size
        self._waiting: deque[tuple[Job, asyncio.Future[Result]]] = deque()
        self._flushing = False

    @property
    def depth(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    async def submit(self, job: Job) -> Result:
        """The job's result. Raises what `run` raised for the job's batch."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((job, future))
        if not self._flushing:
            self._flushing = True
            loop.call_soon(self._flush, loop)
        return await future

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run one batch; leave the rest to the next round, so that the loop serves its sockets in between."""
        batch = self._take()
        if batch:
            self._answer(batch)
        if self._waiting:
            loop.call_soon(self._flush, loop)
        else:
            self._flushing = False

    def _take(self) -> list[tuple[Job, asyncio.Future[Result]]]:
        """The longest waiting jobs that fit one batch, at least one; jobs whose client has gone are dropped."""
        batch: list[tuple[Job, asyncio.Future[Result]]] = []
        room = self._max_batch_size
        while self._waiting:
            job, future = self._waiting[0]
            if not future.cancelled():
                room -= self._size(job)
                if room < 0 and batch:
                    break
                batch.append((job, future))
            self._waiting.popleft()
        return batch

    def _answer(self, batch: list[tuple[Job, asyncio.Future[Result]]]) -> None:
        try:
            results = self._run([job for job, _ in batch])
        except Exception as error:  # whatever it is, it belongs to those who wait
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.cancelled():
                future.set_result(result)
