"""A bulk job on all cores of this machine: a pool of processes, each with a detector of its own."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from app.scaling.scoring import UNREAD, Done, ImageScorer, Job, Row, complete, write
from app.scaling.sources import Slice

T = TypeVar("T")
# Raised where a process ended: in its work, or before it reported work.
_ENDED = (ProcessExpired, BrokenProcessPool, CancelledError)
_AHEAD = 2  # parts for each process that are scored or wait: the next one is there, and memory stays small

_scorer: ImageScorer | None = None  # of this process


class ProcessesError(RuntimeError):
    """The processes cannot work; the message says what to do."""


def score(job: Job, parts: Iterable[Sequence[Slice]], processes: int) -> Iterator[Done]:
    """Score the parts that are not complete yet; yields each part when it is, in order. Raises ProcessesError."""
    pool = _Pool(job, processes)
    waiting: deque[tuple[int, Sequence[Slice], ProcessFuture[Done]]] = deque()
    try:
        for index, part in enumerate(parts):
            if (done := complete(job, index, part)) is not None:
                yield done
                continue
            waiting.append((index, part, pool.schedule(_score_part, job, index, part)))
            if len(waiting) >= _AHEAD * processes:
                yield _result(pool, job, *waiting.popleft())
        while waiting:
            yield _result(pool, job, *waiting.popleft())
    finally:
        pool.stop()


class _Pool:
    """Processes with a detector each. pebble gives a pool up where a process ends before it reports work: it is replaced."""

    def __init__(self, job: Job, processes: int) -> None:
        self._job, self._processes = job, processes
        self._pool = self._new_pool()

    def schedule(self, function: Callable[..., T], *arguments: object) -> "ProcessFuture[T]":
        try:
            return self._pool.schedule(function, args=arguments)
        except RuntimeError:  # pebble gave the pool up
            self.stop()  # those of its processes that are left
            self._pool = self._new_pool()
            return self._pool.schedule(function, args=arguments)

    def check(self) -> None:
        """Raises ProcessesError if a process cannot load the detector."""
        try:
            self.schedule(_score_rows, ()).result()
        except _ENDED as error:
            raise ProcessesError(
                "The processes end before they score; there may be too little memory: use --processes 1."
            ) from error

    def stop(self) -> None:
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()

    def _new_pool(self) -> ProcessPool:
        context = multiprocessing.get_context("forkserver")
        return ProcessPool(max_workers=self._processes, initializer=_load, initargs=(self._job,), context=context)


def _load(job: Job) -> None:
    global _scorer
    _scorer = ImageScorer(job)


def _score_part(job: Job, index: int, part: Sequence[Slice]) -> Done:
    return write(job, index, part, _score_rows(part))


def _score_rows(part: Sequence[Slice]) -> list[Row]:
    assert _scorer is not None
    return _scorer.score_part(part)


def _result(pool: _Pool, job: Job, index: int, part: Sequence[Slice], future: "ProcessFuture[Done]") -> Done:
    """The result of a part. Where its process ended, the image that is the cause gets an error, and the others are scored."""
    try:
        return future.result()
    except _ENDED:
        pool.check()
        return write(job, index, part, _isolate(pool, part))


def _isolate(pool: _Pool, part: Sequence[Slice]) -> list[Row]:
    """The rows of a part, in halves until the slice is found that ends a process."""
    try:
        return pool.schedule(_score_rows, part).result()
    except _ENDED:
        if len(part) == 1:
            pool.check()
            return [{"name": part[0].path, "error": "reading it ended the process", UNREAD: True}]
        half = len(part) // 2
        return _isolate(pool, part[:half]) + _isolate(pool, part[half:])
