"""Drift detection: p-values of the traffic in, evidence of a changed distribution out.

The detector is a test martingale (Vovk, Nouretdinov & Gammerman, Testing exchangeability on-line, 2003). It bets on each
p-value against the hypothesis "the traffic is like the calibration images". While that is true, no bet has a positive expected
gain, and by Ville's inequality a capital that starts at c ever reaches a level L with probability at most c / L.

Each bet states that p-values in one tail (for example those below 0.01) occur `factor` times as often as expected. The
calibration set is finite and fixed, so the true probability q of a tail differs from the nominal one, which would be reported
as drift in the long run. Each bet is therefore made against an upper confidence bound of q: with q below the bound, no bet
gains on average. The bounds of all tails together fail with probability at most _CALIBRATION_SHARE / L, and the capital starts
at 1 - _CALIBRATION_SHARE. Over calibration set and traffic, for a stream of any length,

    P(false alarm) <= P(a bound fails) + P(the capital reaches L while all bounds hold)
                   <= _CALIBRATION_SHARE / L + (1 - _CALIBRATION_SHARE) / L = 1 / L.

Conformal test martingales on a fixed reference set: Prinster, Shaer, Bar & Romano, Testing for
distribution shifts with conditional conformal test martingales, arXiv 2602.13848, 2026.

A tracking mixture (Herbster & Warmuth, Tracking the best expert, 1998) moves a small share of the capital between the bets and
a reserve that does not bet, so that a change after a long normal period is found quickly.
"""

import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating]

LEVEL = 100.0  # alarm level of the capital; the probability of a false alarm is at most 1 / LEVEL

_TAILS = (0.01, 0.05, 0.2)  # each gives a bet on p-values <= tail and a bet on p-values > 1 - tail
_BOUNDED_TAILS = tuple((tail, is_lower) for tail in _TAILS for is_lower in (True, False))
_FACTORS = (1.5, 2.0, 4.0, 10.0, 30.0)  # claimed frequency of the tail, as a multiple of the expected one
_BLOCK = 32  # p-values per update of the capital
_CHUNK_BLOCKS = 64  # whose bets are computed at once
_MIXING_RATE = 0.01  # share of the capital that is redistributed after each block
_CALIBRATION_SHARE = 0.1  # share of the false-alarm probability that is kept for the error of the calibration


@dataclass(frozen=True)
class Drift:
    """State of a DriftMonitor."""

    images: int  # p-values observed
    capital: float  # current capital; it starts at 0.9
    highest: float  # highest capital so far
    level: float  # alarm level
    drifting: bool  # True once `highest` has reached `level`
    since: int | None  # number of images at which the level was reached


class _Bet(NamedTuple):
    """The claim that a tail occurs `factor` times as often as expected."""

    tail: float
    is_lower: bool  # p-values <= tail, else p-values > 1 - tail
    factor: float


class DriftMonitor:
    """Test martingale over a stream of conformal p-values.

    One thread observes p-values; the bets on them (60 ms for 100,000) may be made on any other.
    """

    def __init__(self, scores: Scores, level: float = LEVEL, uploads: Sequence[Scores] = (), *, shuffle: bool = False) -> None:
        """`scores` [n] are the calibration scores that the p-values are computed from, ascending. `uploads` are those of each
        calibration of uploads, whose scores are mapped to the scale of the first.

        With `shuffle`, the p-values of one call of `observe` are bet on in random order: neighbours in an array that is sorted
        by writer or class are alike, which is not drift.
        """
        error = _CALIBRATION_SHARE / (level * (1 + len(uploads)))
        by_size = {len(scores): _tail_bounds(scores, error)}
        for own in uploads:  # two calibrations of the same size share the larger bounds
            found = _tail_bounds(own, error, scores)
            known = by_size.get(len(own), found)
            by_size[len(own)] = {tail: max(found[tail], known[tail]) for tail in _BOUNDED_TAILS}
        self._sizes = np.array(sorted(by_size))
        bounds = [by_size[size] for size in sorted(by_size)]
        bets = [
            bet
            for bet in (_Bet(*tail, factor) for tail in _BOUNDED_TAILS for factor in _FACTORS)
            if any(_is_possible(bet, bound) for bound in bounds)
        ]
        self._tails = np.array([0.0, *(bet.tail for bet in bets)])  # index 0 is the reserve, which does not bet
        self._is_lower = np.array([True, *(bet.is_lower for bet in bets)])
        factors = np.stack([_log_factors(bets, bound) for bound in bounds])  # [sizes, 1 + bets, 2]
        self._log_win, self._log_loss = factors[:, :, 0], factors[:, :, 1]
        shares = np.full(len(bets), 0.5 / max(len(bets), 1))
        self._log_shares = np.log(np.array([1 - shares.sum(), *shares]))  # half of the capital is the reserve
        self._pending: deque[tuple[NDArray[np.float64], NDArray[np.intp]]] = deque()  # without bets yet
        self._updating = threading.Lock()
        self._random = np.random.default_rng() if shuffle else None
        self._calibration_images = len(scores)
        self.level = level
        self._log_capital = self._log_shares + math.log1p(-_CALIBRATION_SHARE)  # of each bet, [1 + bets]
        self._observed = self._images = 0  # p-values, and those of them in blocks that were bet on
        self._highest = math.log1p(-_CALIBRATION_SHARE)  # log of the highest total capital
        self._since: int | None = None

    def observe(self, p_values: NDArray[np.float64], sizes: NDArray[np.intp] | None = None) -> None:
        """Add p-values [N] in the order of the traffic. The bets on them are made by `update` or `state`.

        `sizes` [N] are the sizes of the calibrations that they are from; None: that of unprepared images for all.
        """
        if sizes is None:
            sizes = np.full(len(p_values), self._calibration_images)
        self._pending.append((p_values, sizes))
        self._observed += len(p_values)

    def update(self) -> None:
        """Bet on each complete block of _BLOCK p-values that was observed."""
        with self._updating:
            waiting = [self._pending.popleft() for _ in range(len(self._pending))]
            if not waiting:
                return
            if self._random is not None:
                orders = [self._random.permutation(len(p_values)) for p_values, _ in waiting]
                waiting = [(p_values[order], sizes[order]) for (p_values, sizes), order in zip(waiting, orders, strict=True)]
            p_values, sizes = (np.concatenate(column) for column in zip(*waiting, strict=True))
            complete = len(p_values) // _BLOCK * _BLOCK
            for start in range(0, complete, _BLOCK * _CHUNK_BLOCKS):
                chunk = slice(start, min(start + _BLOCK * _CHUNK_BLOCKS, complete))
                for gains in self._gains(p_values[chunk], sizes[chunk]):
                    self._update_capital(gains)
            self._pending.appendleft((p_values[complete:], sizes[complete:]))

    def state(self) -> Drift:
        """The state after all bets, but does not wait for those that another thread is making. `images` counts all p-values."""
        if not self._updating.locked():
            self.update()
        capital = _exp(_log_sum(self._log_capital))
        return Drift(
            images=self._observed,
            capital=capital,
            highest=max(_exp(self._highest), capital),
            level=self.level,
            drifting=self._since is not None,
            since=self._since,
        )

    def _gains(self, p_values: NDArray[np.float64], sizes: NDArray[np.intp]) -> NDArray[np.float64]:
        """p-values [B * _BLOCK] and sizes of their calibration sets -> log gain of each bet in each block, [B, 1 + bets]."""
        p, size = p_values[:, None], np.maximum(np.searchsorted(self._sizes, sizes, side="right") - 1, 0)
        inside = np.where(self._is_lower, p <= self._tails, p > 1 - self._tails).reshape(-1, _BLOCK, len(self._tails))
        gains = np.zeros((len(inside), len(self._tails)))
        for index in np.flatnonzero(np.bincount(size)):  # np.unique imports numpy.ma, which takes 20 ms
            of_size = (size == index).reshape(-1, _BLOCK)
            hits = (inside & of_size[:, :, None]).sum(axis=1, dtype=float)
            misses = of_size.sum(axis=1)[:, None] - hits
            gains += hits * self._log_win[index] + misses * self._log_loss[index]
        return gains

    def _update_capital(self, gains: NDArray[np.float64]) -> None:
        """Apply the log gains [1 + bets] of one block; then redistribute _MIXING_RATE of the capital."""
        after_bets = self._log_capital + gains
        self._images += _BLOCK
        total = _log_sum(after_bets)
        self._highest = max(self._highest, total)
        if self._since is None and total >= math.log(self.level):
            self._since = self._images
        kept = after_bets + math.log1p(-_MIXING_RATE)
        self._log_capital = np.logaddexp(kept, total + math.log(_MIXING_RATE) + self._log_shares)


def _tail_bounds(scores: Scores, error: float, mapped_to: Scores | None = None) -> dict[tuple[float, bool], float]:
    """Tail -> upper bound on its true probability, for p-values from calibration scores [n], ascending.

    `error` is the probability that any of the bounds fails. Upload scores are `mapped_to` the scale of other scores. The
    p-value of a mapped score exceeds the exact one by less than 1 / (n + 1) + 1 / (len(mapped_to) + 1), which can move at most
    `margin` of the n + 1 possible p-values into an upper tail.

    Images with equal scores have equal p-values, so an upper tail holds all or none of them: its probability is at most that of
    the rank above the last one. Where this is the next rank, as without equal scores, the bound uses half of the error; the
    other half is for all other ranks at once.
    """
    n, bounds = len(scores), {}
    for tail, is_lower in _BOUNDED_TAILS:
        rank, allowed = _rank(n, tail, is_lower=is_lower), error / len(_BOUNDED_TAILS)
        if not is_lower:
            if mapped_to is not None:
                others, margin = len(mapped_to) + 1, 2 + (n + 1) // (len(mapped_to) + 1)
                rank = max(rank, _last_equal(mapped_to, _rank(others - 1, tail)) * (n + 1) // others) + margin
            last = _last_equal(scores, rank)
            rank, allowed = last + 1, allowed / (2 if last <= rank else 2 * n)
        bounds[tail, is_lower] = largest_tail_probability(rank, n, allowed)
    return bounds


def _rank(n: int, tail: float, *, is_lower: bool = False) -> int:
    """How many of the n + 1 possible p-values are in a tail."""
    p_values = np.arange(1, n + 2) / (n + 1)  # computed as Calibration.p_values does
    return int((p_values <= tail if is_lower else p_values > 1 - tail).sum())


def _last_equal(scores: Scores, rank: int) -> int:
    """The largest rank of a score that equals the one of `rank`; the smallest score has rank 1."""
    return int(np.searchsorted(scores, scores[min(max(rank, 1), len(scores)) - 1], side="right"))


def _is_possible(bet: _Bet, bounds: Mapping[tuple[float, bool], float]) -> bool:
    """Whether the claimed probability is below 0.95: a claim near certainty would lose all on its first loss."""
    return bounds[bet.tail, bet.is_lower] * bet.factor < 0.95


def _log_factors(bets: Sequence[_Bet], bounds: Mapping[tuple[float, bool], float]) -> NDArray[np.float64]:
    """Logs of the factors of the capital for a p-value inside and outside the tail of each bet, [1 + bets, 2].

    Both are 0 for the reserve and for bets that the bounds do not allow. With the true probability of the tail at its bound,
    the mean factor is 1.
    """
    factors = np.ones((1 + len(bets), 2))
    for row, bet in enumerate(bets, start=1):
        bound = bounds[bet.tail, bet.is_lower]
        if _is_possible(bet, bounds):
            factors[row] = bet.factor, (1 - bound * bet.factor) / (1 - bound)
    logs: NDArray[np.float64] = np.log(factors)
    return logs


def largest_tail_probability(rank: int, n: int, error: float) -> float:
    """Upper confidence bound on the true probability q of a tail that holds `rank` of the n + 1 possible p-values.

    If the scores have no ties, q follows Beta(k, n + 1 - k) over calibration sets, k = rank. P(q > x) is the probability that
    Binomial(n, x) is below k, and Chernoff's bound on it is exp(-n KL((k - 1) / n || x)). The bound fails with a probability
    of at most `error`. A rank of 0 counts as 1. Above rank n the bound is 1.
    """
    if rank > n:
        return 1.0
    share = (max(rank, 1) - 1) / n
    low, high = share, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if n * _divergence(share, middle) < -math.log(error):
            low = middle
        else:
            high = middle
    return high


def _divergence(p: float, q: float) -> float:
    """Kullback-Leibler divergence between Bernoulli distributions with probabilities p and q, in nats."""
    first = p * math.log(p / q) if p > 0 else 0.0
    second = (1 - p) * math.log((1 - p) / (1 - q)) if p < 1 and q < 1 else (0.0 if p >= 1 else math.inf)
    return first + second


def _log_sum(logs: NDArray[np.float64]) -> float:
    return float(np.logaddexp.reduce(logs))


def _exp(value: float) -> float:
    """exp without overflow: the result is at most 1e304."""
    return math.exp(min(value, 700.0))
