"""Admission control (load shedding): counts the requests in progress, and rejects one that would wait too long.

A server that accepts everything answers nothing in time once it is overloaded. This one measures its own pace and rejects
at once what is expected to wait longer than half of its deadline.
"""

import math
import time
from types import TracebackType

_SMOOTHING = 0.02  # weight of the newest completion in the moving average: about fifty requests count
_MARGIN = 0.5  # of the deadline: the pace is an average, and a response that comes too late is wasted work


class Overloaded(RuntimeError):
    """The server has too much work; `retry_after` is the number of seconds after which to try again."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("too many requests are waiting")
        self.retry_after = retry_after


class Admission:
    """A context manager: each request in progress is inside of it. Belongs to one event loop."""

    def __init__(self, *, max_waiting: int, deadline_s: float) -> None:
        """At most `max_waiting` requests at once, and none that is expected to wait for half of `deadline_s` seconds."""
        self._max_waiting = max_waiting
        self._deadline_s = deadline_s
        self._pace_s = 0.0  # moving average of the seconds of work for each request
        self._last_completion = 0.0
        self.in_flight = 0

    @property
    def expected_wait_s(self) -> float:
        """How long the requests in progress will take at the recent pace."""
        return self.in_flight * self._pace_s

    @property
    def is_overloaded(self) -> bool:
        """Whether one more request would be rejected."""
        if self.in_flight <= 1:
            return self.in_flight >= self._max_waiting
        return self.in_flight >= self._max_waiting or self.expected_wait_s > _MARGIN * self._deadline_s

    def check(self) -> None:
        """Raise Overloaded if one more request would be rejected."""
        if self.is_overloaded:
            raise Overloaded(max(1, math.ceil(self.expected_wait_s)))

    def __enter__(self) -> None:
        """Accept one more request. Raises Overloaded."""
        self.check()
        if self.in_flight == 0:
            self._last_completion = time.perf_counter()
        self.in_flight += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        now = time.perf_counter()
        self._pace_s += _SMOOTHING * (now - self._last_completion - self._pace_s)
        self._last_completion = now
        self.in_flight -= 1
