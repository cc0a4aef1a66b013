"""Conformal calibration: turns the scores of held-back normal images into p-values and thresholds.

For a score s against n calibration scores the p-value is (1 + #{calibration >= s}) / (n + 1), and the threshold for a
false-alarm rate alpha is the k-th largest calibration score with k = floor(alpha (n + 1)). Then `score > threshold` and
`p_value <= alpha` say the same, and on exchangeable normal images the false-alarm rate is at most alpha, for any score
(Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World, 2005; Bates et al., Testing for outliers with conformal
p-values, Annals of Statistics 2023).
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


class CalibrationError(ValueError):
    """The calibration scores are invalid, or too few for the alpha; the message says how many are needed."""


@dataclass(frozen=True)
class Calibration:
    """Scores of normal images that were used to fit neither the network nor the scorer: float32 [n], ascending."""

    scores: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.scores.ndim != 1 or self.scores.size == 0:
            raise CalibrationError("Calibration needs at least one normal image.")
        if self.scores.dtype != np.float32:
            raise CalibrationError(f"Calibration scores must be float32, but they are {self.scores.dtype}.")
        if not np.isfinite(self.scores).all():
            raise CalibrationError("A calibration score is not finite; the model cannot be calibrated.")
        if (np.diff(self.scores) < 0).any():
            raise CalibrationError("Calibration scores must be sorted in ascending order.")

    @classmethod
    def from_scores(cls, scores: NDArray[np.floating]) -> "Calibration":
        """Sort the scores [n] of held-back normal images."""
        return cls(np.sort(np.asarray(scores, np.float32)))

    @property
    def n(self) -> int:
        return int(self.scores.size)

    @cached_property
    def _p_values(self) -> NDArray[np.float64]:
        """The p-values [n + 1], indexed by the number of calibration scores below the score: from 1 down to 1 / (n + 1)."""
        return np.arange(self.n + 1, 0, -1) / (self.n + 1)

    def p_values(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the p-values [N] of scores [N], in [1 / (n + 1), 1]: how often a normal image scores at least as high."""
        return self._p_values[self.scores.searchsorted(scores)]

    def threshold(self, alpha: float) -> float:
        """Return the score above which an image is an anomaly, at a false-alarm rate of at most `alpha`, 0 < alpha < 1.

        Raises CalibrationError if there are too few calibration images for this alpha.
        """
        check_images(alpha, self.n)
        return float(self.scores[self.n - largest_rank(alpha, self.n)])


def benjamini_hochberg(p_values: NDArray[np.float64], fdr: float) -> float:
    """Return the limit at or below which a p-value of [N] is an anomaly, with a false-discovery rate of at most `fdr`.

    It is the largest fdr k / N that the k-th smallest p-value does not exceed. If there is none, it is fdr / N, which is below
    all p-values (Benjamini & Hochberg, Controlling the false discovery rate, JRSS B 1995). The rate also holds for conformal
    p-values, which share a calibration set (Bates et al., 2023).
    """
    count = len(p_values)
    limits = fdr * np.arange(1, count + 1) / count
    (kept,) = np.nonzero(np.sort(p_values) <= limits)
    return float(limits[kept[-1]] if len(kept) else limits[0])


def largest_rank(alpha: float, n: int) -> int:
    """Return the largest k <= n with k / (n + 1) <= alpha in floating point, so that threshold and p-values agree."""
    rank = int(alpha * (n + 1))
    while (rank + 1) / (n + 1) <= alpha:
        rank += 1
    while rank / (n + 1) > alpha:
        rank -= 1
    return min(rank, n)


def check_images(alpha: float, images: int) -> None:
    """Raise CalibrationError if a threshold at `alpha` needs more calibration images than `images`."""
    if message := too_few_images(alpha, images):
        raise CalibrationError(message)


def too_few_images(alpha: float, images: int) -> str | None:
    """Return a message if a threshold at `alpha` needs more calibration images than `images`, else None."""
    if images >= images_needed(alpha):
        return None
    return (
        f"alpha {alpha:g} needs at least {images_needed(alpha):,} calibration images, but there are {images:,}. "
        "Ask for a larger alpha or calibrate with more images."
    )


def images_needed(alpha: float) -> int:
    """Return the smallest number n of calibration images with a threshold at `alpha`: 1 / (n + 1) <= alpha."""
    if alpha < 1e-9:  # the loop below would take too long
        return math.ceil(1 / Fraction(alpha)) - 1
    needed = max(int(1 / alpha) - 1, 1)
    while 1 / (needed + 1) > alpha:
        needed += 1
    return needed
