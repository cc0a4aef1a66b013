"""Admission control (load shedding): rejects at once a request that would wait too long.

A server that accepts everything answers nothing in time once it is overloaded. Each stage of the server (the event loop, the
decoder processes, the threads for arrays and for pictures) has a queue of its own, so that work which waits for one stage never
refuses requests that do not need it.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

_SMOOTHING = 0.02  # weight of the newest completion in the moving average: about fifty requests count
_MARGIN = 0.5  # of the deadline: the pace is an average, and a response that comes too late is wasted work
_HALF_LIFE_S = 2.0  # after this time a measurement of the pace counts half: the pace recovers soon after a flood
_PRIOR_S = 0.05  # of work at the expected pace, which counts beside the measurements


class Overloaded(RuntimeError):
    """The server has too much work; `retry_after` is the number of seconds after which to try again."""

    def __init__(self, wait_s: float) -> None:
        """`wait_s`: the expected wait in seconds."""
        super().__init__("too many requests are waiting")
        self.retry_after = max(1, math.ceil(wait_s))


class Admission:
    """Counts the requests in progress, and the work of the event loop. A context manager: each request is inside of it."""

    def __init__(self, *, max_waiting: int, deadline_s: float) -> None:
        """At most `max_waiting` requests at once, and none that is expected to wait for half of `deadline_s` seconds."""
        self._max_waiting = max_waiting
        self._deadline_s = deadline_s
        self._pace_s = 0.0  # moving average of the seconds of work for each request
        self._last_completion = 0.0
        self._elsewhere = 0  # requests that wait for another stage than the event loop
        self.in_flight = 0

    @property
    def expected_wait_s(self) -> float:
        """How long the requests in the event loop will take at the recent pace."""
        return (self.in_flight - self._elsewhere) * self._pace_s

    @property
    def is_overloaded(self) -> bool:
        """Whether one more request would be rejected."""
        in_flight = self.in_flight
        return in_flight >= self._max_waiting or (in_flight > 1 and self.expected_wait_s > _MARGIN * self._deadline_s)

    def check(self) -> None:
        """Raise Overloaded if one more request would be rejected."""
        if self.is_overloaded:
            raise Overloaded(self.expected_wait_s)

    def __enter__(self) -> None:
        """Accept one more request. Raises Overloaded."""
        self.check()
        self._begin_if_idle()
        self.in_flight += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        now = time.perf_counter()
        self._pace_s += _SMOOTHING * (now - self._last_completion - self._pace_s)
        self._last_completion = now
        self.in_flight -= 1

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """While the context lasts, a request that is inside does not count as work of the event loop."""
        self._elsewhere += 1
        try:
            yield
        finally:
            self._begin_if_idle()
            self._elsewhere -= 1

    def _begin_if_idle(self) -> None:
        """Time in which the event loop had nothing to do is no work."""
        if self.in_flight == self._elsewhere:
            self._last_completion = time.perf_counter()


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

    def __init__(self, *, servers: int, max_wait_s: float, max_jobs: int) -> None:
        """`servers`: how many processes or threads work on the queue; at most `max_jobs` jobs wait or are worked on."""
        self._servers = servers
        self._max_wait_s = max_wait_s
        self._max_jobs = max_jobs
        self._seconds = 0.0
        self._pace = Pace()
        self.jobs = 0

    @property
    def expected_wait_s(self) -> float:
        """How long the accepted work will take."""
        return self._seconds * self._pace.ratio / self._servers

    def check(self) -> None:
        """Raise Overloaded if the queue accepts no more work."""
        if self.jobs and (self.jobs >= self._max_jobs or self.expected_wait_s > self._max_wait_s):
            raise Overloaded(self.expected_wait_s)

    def record(self, expected_s: float, measured_s: float) -> None:
        """Count work that one process or thread was expected to do in `expected_s` seconds and did in `measured_s`."""
        self._pace.record(expected_s, measured_s)

    @contextmanager
    def reserve(self, seconds: float) -> Iterator[None]:
        """Count `seconds` of work while the context lasts. Raises Overloaded."""
        self.check()
        self._seconds += seconds
        self.jobs += 1
        try:
            yield
        finally:
            self.jobs -= 1
            self._seconds = self._seconds - seconds if self.jobs else 0.0  # no rounding errors add up
