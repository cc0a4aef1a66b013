"""Drift: p-values of the traffic in, evidence that the traffic is no longer what the model was calibrated for out.

A test martingale (Vovk, Nouretdinov & Gammerman, Testing exchangeability on-line, 2003): a player with capital 1 bets
against "normal traffic" on each p-value. While the traffic is normal no strategy is expected to win, and by Ville's
inequality the capital ever reaches a level L with probability at most 1/L. Capital of 100 is evidence, whatever the length
of the stream.

The bets: on shares. Normal p-values fall below 0.01 one time in a hundred; bet "m times as often" pays m there and less
elsewhere. The calibration is finite, so its own error would be found in the end and called drift; each bet is therefore made
against the largest share that the calibration leaves possible (Chernoff's bound on the Beta law of a conformal threshold).
A tracking mixture (Herbster & Warmuth, Tracking the best expert, 1998) moves a little capital between the bets and a cash
box all the time, so that a change is seen soon even after long calm. Knows no model and no HTTP.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 100.0  # capital at which drift is announced: a false alarm ever has probability at most 1 / LEVEL

_TAILS = (0.01, 0.05, 0.2)  # bets on p-values below these, and above one minus these
_FACTORS = (1.5, 2.0, 4.0, 10.0, 30.0)  # how many times as often as normal
_BLOCK = 32  # p-values between two moves of capital
_JUMP = 0.01  # share of the capital that is moved
_DOUBT = 1e-4  # probability that the calibration's error is larger than allowed for


@dataclass(frozen=True)
class Drift:
    """What the monitor has seen since it was reset."""

    images: int  # p-values seen
    capital: float  # now
    highest: float  # ever
    level: float
    drifting: bool  # `highest` has reached `level`
    since: int | None  # how many images it took


class DriftMonitor:
    """Bets on a stream of conformal p-values. Belongs to one thread."""

    def __init__(self, calibration_images: int, level: float = LEVEL) -> None:
        """`calibration_images` is the n behind the p-values."""
        bets = [bet for share in _TAILS for factor in _FACTORS if (bet := _bet(share, factor, calibration_images))]
        low, high = [(*bet, True) for bet in bets], [(*bet, False) for bet in bets]
        self._shares = np.array([bet[0] for bet in (*low, *high)])
        self._win = np.array([0.0, *(bet[1] for bet in (*low, *high))])  # log of what a hit pays; first the cash box
        self._lose = np.array([0.0, *(bet[2] for bet in (*low, *high))])
        self._low = np.array([bet[3] for bet in (*low, *high)])
        shares = np.full(len(self._shares), 0.5 / max(len(self._shares), 1))
        self._start = np.log(np.array([1 - shares.sum(), *shares]))  # half the capital in the cash box
        self._pending: list[NDArray[np.float64]] = []
        self._waiting = 0
        self.level = level
        self.reset()

    def reset(self) -> None:
        """Forget everything, as for a new version."""
        self._logs = self._start.copy()  # log capital in each bet
        self._images = 0
        self._highest = 0.0
        self._since: int | None = None
        self._pending.clear()
        self._waiting = 0

    def observe(self, p_values: NDArray[np.float64]) -> None:
        """Take in p-values [N] in the order of the traffic; they are bet on in blocks."""
        self._pending.append(p_values)
        self._waiting += len(p_values)
        if self._waiting < _BLOCK:
            return
        waiting = np.concatenate(self._pending)
        whole = len(waiting) // _BLOCK * _BLOCK
        self._pending, self._waiting = [waiting[whole:]], len(waiting) - whole
        for counts in self._hits(waiting[:whole].reshape(-1, _BLOCK)):
            self._bet_on(counts)

    def state(self) -> Drift:
        """Where the capital stands."""
        capital = _exp(_log_sum(self._logs))
        return Drift(
            self._images + self._waiting,
            capital,
            max(_exp(self._highest), capital),
            self.level,
            self._since is not None,
            self._since,
        )

    def _hits(self, blocks: NDArray[np.float64]) -> NDArray[np.float64]:
        """How many p-values of each block [B, _BLOCK] each bet was right about: [B, bets]."""
        p = blocks[:, :, None]
        hits: NDArray[np.float64] = np.where(self._low, p <= self._shares, p > 1 - self._shares).sum(axis=1, dtype=float)
        return hits

    def _bet_on(self, hits: NDArray[np.float64]) -> None:
        hits = np.concatenate([[0.0], hits])
        self._logs += hits * self._win + (_BLOCK - hits) * self._lose
        self._images += _BLOCK
        total = _log_sum(self._logs)
        self._highest = max(self._highest, total)
        if self._since is None and total >= math.log(self.level):
            self._since = self._images
        self._logs = np.logaddexp(self._logs + math.log1p(-_JUMP), total + math.log(_JUMP) + self._start)


def _bet(share: float, factor: float, n: int) -> tuple[float, float, float] | None:
    """(share, log of a hit's pay, log of a miss's pay); None where the factor is more than certainty."""
    possible = largest_share(share, n)
    if possible * factor >= 0.95:
        return None
    return share, math.log(factor), math.log((1 - possible * factor) / (1 - possible))


def largest_share(share: float, n: int) -> float:
    """The largest true share of normal p-values <= `share` that n calibration images leave possible, but for _DOUBT.

    The true share follows Beta(k, n + 1 - k) with k = share (n + 1); its upper tail at q is a binomial's lower tail, which
    Chernoff bounds by exp(-n KL(k / n || q)).
    """
    k = max(share * (n + 1), 1.0)
    low, high = min(k / n, 1.0), 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if n * _divergence(min(k / n, 1.0), middle) < -math.log(_DOUBT):
            low = middle
        else:
            high = middle
    return high


def _divergence(p: float, q: float) -> float:
    """KL divergence between coins of bias p and q, in nats."""
    first = p * math.log(p / q) if p > 0 else 0.0
    second = (1 - p) * math.log((1 - p) / (1 - q)) if p < 1 and q < 1 else (0.0 if p >= 1 else math.inf)
    return first + second


def _log_sum(logs: NDArray[np.float64]) -> float:
    return float(np.logaddexp.reduce(logs))


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))
