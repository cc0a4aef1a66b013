"""Admission control (load shedding): rejects at once a request that would wait too long.

A server that accepts everything answers nothing in time once it is overloaded. The number of requests in progress is limited,
and each stage beside the event loop (the decoder processes, the threads for arrays and for pictures) has a queue of its own, so
that work which waits for one stage never refuses requests that do not need it.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

_HALF_LIFE_S = 2.0  # after this time a measurement of the pace counts half: the pace recovers soon after a flood
_PRIOR_S = 0.05  # of work at the expected pace, which counts beside the measurements


class Overloaded(RuntimeError):
    """The server has too much work; `retry_after` is the number of seconds after which to try again."""

    def __init__(self, wait_s: float) -> None:
        """`wait_s`: the expected wait in seconds."""
        super().__init__("too many requests are waiting")
        self.retry_after = max(1, math.ceil(wait_s))


class Admission:
    """Counts requests in progress, and refuses those beyond a maximum. A context manager: each request is inside of it."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self.in_flight = 0

    def check(self) -> None:
        """Raise Overloaded if one more request would be refused."""
        if self.in_flight >= self._max_waiting:
            raise Overloaded(1)

    def __enter__(self) -> None:
        """Accept one more request. Raises Overloaded."""
        self.check()
        self.in_flight += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.in_flight -= 1


class Pace:
    """How many seconds a second of expected work takes: an average over the last seconds, 1.0 without measurements."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._updated = clock()
        self._expected_s = 0.0
        self._measured_s = 0.0

    @property
    def ratio(self) -> float:
        """Measured seconds for each expected second."""
        kept = self._kept()
        return (_PRIOR_S + kept * self._measured_s) / (_PRIOR_S + kept * self._expected_s)

    def record(self, expected_s: float, measured_s: float) -> None:
        """Count work that was expected to take `expected_s` seconds and took `measured_s`."""
        kept = self._kept()
        self._updated = self._clock()
        self._expected_s = kept * self._expected_s + expected_s
        self._measured_s = kept * self._measured_s + measured_s

    def _kept(self) -> float:
        """The weight that the measurements so far still have."""
        return float(0.5 ** ((self._clock() - self._updated) / _HALF_LIFE_S))


class WorkQueue:
    """The work that waits for one stage, in seconds. An empty queue accepts any work.

    The expected seconds are corrected by recent measurements: on a busy machine work takes longer.
    """

    def __init__(self, *, servers: int, max_wait_s: float) -> None:
        """`servers`: how many processes or threads work on the queue."""
        self._servers = servers
        self._max_wait_s = max_wait_s
        self._seconds = 0.0
        self._pace = Pace()
        self.jobs = 0

    @property
    def expected_wait_s(self) -> float:
        """How long the accepted work will take."""
        return self._seconds * self._pace.ratio / self._servers

    def check(self) -> None:
        """Raise Overloaded if the queue accepts no more work."""
        if self.jobs and self.expected_wait_s > self._max_wait_s:
            raise Overloaded(self.expected_wait_s)

    def record(self, expected_s: float, measured_s: float) -> None:
        """Count work that one process or thread was expected to do in `expected_s` seconds and did in `measured_s`."""
        self._pace.record(expected_s, measured_s)

    @contextmanager
    def reserve(self, seconds: float) -> Iterator[None]:
        """Accept `seconds` of work, and count it while the context lasts. Raises Overloaded."""
        self.check()
        with self.count(seconds):
            yield

    @contextmanager
    def count(self, seconds: float) -> Iterator[None]:
        """Count `seconds` of work while the context lasts, however much work waits."""
        self._seconds += seconds
        self.jobs += 1
        try:
            yield
        finally:
            self.jobs -= 1
            self._seconds = self._seconds - seconds if self.jobs else 0.0  # no rounding errors add up
