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
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.serving.telemetry.model_metrics import ModelMetrics

if TYPE_CHECKING:
    from app.detection.bundle import Bundle
    from app.detection.detector import Detections

LEVEL = 100.0  # alarm level of the capital; the probability of a false alarm is at most 1 / LEVEL

_TAILS = (0.01, 0.05, 0.2)  # each gives a bet on p-values <= tail and a bet on p-values > 1 - tail
_FACTORS = (1.5, 2.0, 4.0, 10.0, 30.0)  # claimed frequency of the tail, as a multiple of the expected one
_BLOCK = 32  # p-values per update of the capital
_MIXING_RATE = 0.01  # share of the capital that is redistributed after each block
_CALIBRATION_SHARE = 0.1  # share of the false-alarm probability that is kept for the error of the calibration


@dataclass(frozen=True)
class Drift:
    """State of a DriftMonitor."""

    images: int  # p-values observed since the last reset
    capital: float  # current capital; it starts at 0.9
    highest: float  # highest capital since the last reset
    level: float  # alarm level
    drifting: bool  # True once `highest` has reached `level`
    since: int | None  # number of images at which the level was reached


class _Bet(NamedTuple):
    """The claim that a tail occurs `factor` times as often as expected."""

    tail: float
    is_lower: bool  # p-values <= tail, else p-values > 1 - tail
    log_win: float  # log of the capital's factor for a p-value inside the tail
    log_loss: float  # log of the capital's factor for a p-value outside it


class DriftMonitor:
    """Test martingale over a stream of conformal p-values. Not thread-safe: use it from one thread."""

    def __init__(self, calibration_images: int, level: float = LEVEL, groups: int = 1) -> None:
        """`calibration_images` is the number of calibration scores that the p-values are computed from. Where kinds of images
        have p-values from calibration sets of their own, `groups` is their number and `calibration_images` the smallest."""
        bets = _make_bets(calibration_images, error=_CALIBRATION_SHARE / (level * groups))
        self._tails = np.array([bet.tail for bet in bets])
        self._is_lower = np.array([bet.is_lower for bet in bets], bool)
        self._log_win = np.array([0.0, *(bet.log_win for bet in bets)])  # index 0 is the reserve, which does not bet
        self._log_loss = np.array([0.0, *(bet.log_loss for bet in bets)])
        shares = np.full(len(bets), 0.5 / max(len(bets), 1))
        self._log_shares = np.log(np.array([1 - shares.sum(), *shares]))  # half of the capital is the reserve
        self._pending: list[NDArray[np.float64]] = []  # p-values of the block that is not complete yet
        self._pending_count = 0
        self.level = level
        self.reset()

    def reset(self) -> None:
        """Return to the initial state, as for a new model version."""
        self._log_capital = self._log_shares + math.log1p(-_CALIBRATION_SHARE)  # of each bet, [1 + bets]
        self._images = 0
        self._highest = math.log1p(-_CALIBRATION_SHARE)  # log of the highest total capital
        self._since: int | None = None
        self._pending.clear()
        self._pending_count = 0

    def observe(self, p_values: NDArray[np.float64]) -> None:
        """Add p-values [N] in the order of the traffic. The capital changes after each block of _BLOCK p-values."""
        self._pending.append(p_values)
        self._pending_count += len(p_values)
        if self._pending_count < _BLOCK:
            return
        pending = np.concatenate(self._pending)
        complete = len(pending) // _BLOCK * _BLOCK
        self._pending, self._pending_count = [pending[complete:]], len(pending) - complete
        for hits in self._count_hits(pending[:complete].reshape(-1, _BLOCK)):
            self._update_capital(hits)

    def state(self) -> Drift:
        """The current state, p-values of the incomplete block counted in `images`."""
        capital = _exp(_log_sum(self._log_capital))
        return Drift(
            images=self._images + self._pending_count,
            capital=capital,
            highest=max(_exp(self._highest), capital),
            level=self.level,
            drifting=self._since is not None,
            since=self._since,
        )

    def _count_hits(self, blocks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Blocks of p-values [B, _BLOCK] -> number of p-values inside the tail of each bet, [B, bets]."""
        p = blocks[:, :, None]
        inside = np.where(self._is_lower, p <= self._tails, p > 1 - self._tails)
        hits: NDArray[np.float64] = inside.sum(axis=1, dtype=float)
        return hits

    def _update_capital(self, hits: NDArray[np.float64]) -> None:
        """Apply the wins and losses of one block, hits [bets]; then redistribute _MIXING_RATE of the capital."""
        hits = np.concatenate([[0.0], hits])
        self._log_capital += hits * self._log_win + (_BLOCK - hits) * self._log_loss
        self._images += _BLOCK
        total = _log_sum(self._log_capital)
        self._highest = max(self._highest, total)
        if self._since is None and total >= math.log(self.level):
            self._since = self._images
        kept = self._log_capital + math.log1p(-_MIXING_RATE)
        self._log_capital = np.logaddexp(kept, total + math.log(_MIXING_RATE) + self._log_shares)


class TrafficMonitor:
    """Records the results of every forward pass of one model: metrics of all images, drift of the images with verdicts.

    The p-values of one forward pass are shuffled before the bets: neighbours in an array that is sorted by writer or class are
    alike, which is not drift.
    """

    def __init__(self, metrics: ModelMetrics, level: float) -> None:
        """`level` is the alarm level of the drift monitor's capital."""
        self._metrics = metrics
        self._level = level
        self._bundle: Bundle | None = None  # the bundle in service
        self._drift = DriftMonitor(1, level)
        self._random = np.random.default_rng()

    def set_model(self, bundle: "Bundle", device: str) -> None:
        """Start a new stream of p-values for a bundle that goes into service on `device`."""
        groups = 1 if bundle.uploads is None else 2  # unprepared images and prepared uploads, n scores each
        self._bundle, self._drift = bundle, DriftMonitor(bundle.calibration.n, self._level, groups)
        self._metrics.set_version(bundle.card.version, bundle.card.scorer, device)

    def record_batch(self, bundle: "Bundle", images: int, scored: "Detections | None") -> None:
        """Record a forward pass of `images` images; `scored` holds the detections that become verdicts."""
        self._metrics.record_batch(images)
        if scored is None:
            return
        self._metrics.record_scores(scored.scores, scored.p_values, bundle.card.threshold)
        if bundle is self._bundle:  # a long array may finish after its version was replaced
            single = len(scored.p_values) == 1
            self._drift.observe(scored.p_values if single else self._random.permutation(scored.p_values))

    def drift(self) -> Drift:
        """The drift state of the model in service."""
        return self._drift.state()


def _make_bets(n: int, error: float) -> list[_Bet]:
    """The bets for p-values from n calibration scores; `error` is the probability that any of their bounds fails."""
    p_values = np.arange(1, n + 2) / (n + 1)  # all that occur, computed as Calibration.p_values does
    bets = []
    for tail in _TAILS:
        for is_lower in (True, False):
            rank = int((p_values <= tail if is_lower else p_values > 1 - tail).sum())
            bound = largest_tail_probability(rank, n, error / (2 * len(_TAILS)))
            bets += [
                _Bet(tail, is_lower, math.log(factor), math.log((1 - bound * factor) / (1 - bound)))
                for factor in _FACTORS
                if bound * factor < 0.95  # a claim near certainty would lose all on its first loss
            ]
    return bets


def largest_tail_probability(rank: int, n: int, error: float) -> float:
    """Upper confidence bound on the true probability q of a tail that holds `rank` of the n + 1 possible p-values.

    If the scores have no ties, q follows Beta(k, n + 1 - k) over calibration sets, k = rank. P(q > x) is the probability that
    Binomial(n, x) is below k, and Chernoff's bound on it is exp(-n KL((k - 1) / n || x)). The bound fails with a probability
    of at most `error`. A rank of 0 counts as 1.
    """
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
