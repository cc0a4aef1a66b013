"""Drift detection: p-values of the traffic in, evidence of a changed distribution out.

The detector is a test martingale (Vovk, Nouretdinov & Gammerman, Testing exchangeability on-line, 2003). It starts with a
capital of 1 and bets on each p-value against the hypothesis "the traffic is like the calibration images". While that is true,
no bet has a positive expected gain, and by Ville's inequality the capital ever reaches a level L with probability at most 1/L,
for a stream of any length.

Each bet states that p-values in one tail (for example those below 0.01) occur `factor` times as often as expected. The
calibration set is finite, so its own sampling error would be reported as drift in the long run. Each bet therefore uses the
largest tail probability that is compatible with the calibration set (Chernoff's bound on the Beta distribution of a conformal
threshold). A tracking mixture (Herbster & Warmuth, Tracking the best expert, 1998) moves a small share of the capital between
the bets and a reserve that does not bet, so that a change after a long normal period is found quickly.
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
_CALIBRATION_ERROR = 1e-4  # probability that the true tail probability is above the bound that is used


@dataclass(frozen=True)
class Drift:
    """State of a DriftMonitor."""

    images: int  # p-values observed since the last reset
    capital: float  # current capital
    highest: float  # highest capital since the last reset
    level: float  # alarm level
    drifting: bool  # True once `highest` has reached `level`
    since: int | None  # number of images at which the level was reached


class _Bet(NamedTuple):
    """The claim that a tail occurs `factor` times as often as expected."""

    tail: float
    log_win: float  # log of the capital's factor for a p-value inside the tail
    log_loss: float  # log of the capital's factor for a p-value outside it


class DriftMonitor:
    """Test martingale over a stream of conformal p-values. Not thread-safe: use it from one thread."""

    def __init__(self, calibration_images: int, level: float = LEVEL) -> None:
        """`calibration_images` is the number of calibration scores that the p-values are computed from."""
        candidates = (_make_bet(tail, factor, calibration_images) for tail in _TAILS for factor in _FACTORS)
        bets = [bet for bet in candidates if bet is not None]
        self._tails = np.array([bet.tail for bet in bets * 2])  # first the lower tails, then the upper tails
        self._is_lower = np.arange(2 * len(bets)) < len(bets)
        self._log_win = np.array([0.0, *(bet.log_win for bet in bets * 2)])  # index 0 is the reserve, which does not bet
        self._log_loss = np.array([0.0, *(bet.log_loss for bet in bets * 2)])
        shares = np.full(len(self._tails), 0.5 / max(len(self._tails), 1))
        self._initial = np.log(np.array([1 - shares.sum(), *shares]))  # half of the capital is the reserve
        self._pending: list[NDArray[np.float64]] = []  # p-values of the block that is not complete yet
        self._pending_count = 0
        self.level = level
        self.reset()

    def reset(self) -> None:
        """Return to the initial state, as for a new model version."""
        self._log_capital = self._initial.copy()  # log capital of each bet, [1 + bets]
        self._images = 0
        self._highest = 0.0  # log of the highest total capital
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
        self._log_capital = np.logaddexp(kept, total + math.log(_MIXING_RATE) + self._initial)


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
        self._bundle, self._drift = bundle, DriftMonitor(bundle.calibration.n, self._level)
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


def _make_bet(tail: float, factor: float, n: int) -> _Bet | None:
    """The bet that `tail` occurs `factor` times as often; None where the claimed probability would be 0.95 or more."""
    probability = largest_tail_probability(tail, n)
    if probability * factor >= 0.95:
        return None
    return _Bet(tail, math.log(factor), math.log((1 - probability * factor) / (1 - probability)))


def largest_tail_probability(tail: float, n: int) -> float:
    """Upper confidence bound on the true probability of p-values <= `tail` with n calibration images.

    The true probability follows Beta(k, n + 1 - k) with k = tail (n + 1). Its upper tail at q is the lower tail of a binomial
    distribution, which Chernoff bounds by exp(-n KL(k / n || q)). The bound fails with probability _CALIBRATION_ERROR.
    """
    k = max(tail * (n + 1), 1.0)
    low, high = min(k / n, 1.0), 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if n * _divergence(min(k / n, 1.0), middle) < -math.log(_CALIBRATION_ERROR):
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
