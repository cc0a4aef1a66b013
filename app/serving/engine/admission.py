"""Admission: how many questions are under way, and whether one more would still be answered in time. Knows no HTTP.

A server that accepts everything answers nothing in time once it is overloaded. This one counts what it has accepted,
learns its own pace, and refuses at once what would have to wait longer than its deadline.
"""

import math
import time
from types import TracebackType

_SMOOTHING = 0.02  # weight of the newest completion in the pace: the last fifty or so count
_MARGIN = 0.5  # of the deadline: a pace is only an average, and work that comes too late is work for nothing


class Overloaded(RuntimeError):
    """One more question would wait too long; `retry_after` says for how many seconds there is enough to do."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("too much is waiting already")
        self.retry_after = retry_after


class Admission:
    """Enter with `with`; belongs to one event loop."""

    def __init__(self, *, max_waiting: int, deadline_s: float) -> None:
        """At most `max_waiting` questions at once, and none expected to wait for half of `deadline_s` seconds."""
        self._max_waiting = max_waiting
        self._deadline_s = deadline_s
        self._pace_s = 0.0  # seconds of work a question, learnt
        self._since = 0.0  # when the work on the next completion began
        self.in_flight = 0

    @property
    def expected_wait_s(self) -> float:
        """How long what is under way will take at the recent pace."""
        return self.in_flight * self._pace_s

    @property
    def full(self) -> bool:
        """Whether one more question would be refused."""
        return self.in_flight >= self._max_waiting or (self.in_flight > 1 and self.expected_wait_s > _MARGIN * self._deadline_s)

    def refusal(self) -> Overloaded:
        """What a question is told that finds no room."""
        return Overloaded(max(1, math.ceil(self.expected_wait_s)))

    def __enter__(self) -> None:
        """Accept one more question. Raises Overloaded."""
        if self.full:
            raise self.refusal()
        if self.in_flight == 0:
            self._since = time.perf_counter()
        self.in_flight += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        now = time.perf_counter()
        self._pace_s += _SMOOTHING * (now - self._since - self._pace_s)
        self._since = now
        self.in_flight -= 1
