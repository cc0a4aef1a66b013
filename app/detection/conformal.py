"""Conformal calibration: scores of held-back normal images in, p-values and thresholds out. Knows no model and no image.

For a score s against n calibration scores the p-value is (1 + #{calibration >= s}) / (n + 1), and the threshold for a
false-alarm rate alpha is the k-th largest calibration score with k = floor(alpha (n + 1)). Then `score > threshold` and
`p_value <= alpha` say the same, and on exchangeable normals the false-alarm rate is at most alpha, whatever the score is
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
    """The calibration images cannot give what is asked; the message says how many could."""


@dataclass(frozen=True)
class Calibration:
    """Sorted scores of normal images that neither the weights nor the scorer were fitted on: float32 [n], ascending."""

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
    def from_scores(cls, scores: NDArray[np.float32]) -> "Calibration":
        """Sort the scores [n] of held-back normal images."""
        return cls(np.sort(np.asarray(scores, np.float32)))

    @property
    def n(self) -> int:
        return int(self.scores.size)

    @cached_property
    def _p_values(self) -> NDArray[np.float64]:
        """p-value by how many calibration scores lie below: [n + 1], descending from 1 to 1 / (n + 1)."""
        return np.arange(self.n + 1, 0, -1) / (self.n + 1)

    def p_values(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """Scores [N] -> p-values [N] in [1 / (n + 1), 1]: how often a normal image scores at least this high."""
        return self._p_values[np.searchsorted(self.scores, scores, side="left")]

    def threshold(self, alpha: float) -> float:
        """The score above which an image is called an anomaly at false-alarm rate `alpha`, 0 < alpha < 1.

        Raises:
            CalibrationError: there are too few calibration images for a rate that small.
        """
        rank = self._rank(alpha)
        if rank < 1:
            raise CalibrationError(
                f"alpha {alpha:g} needs at least {images_needed(alpha):,} calibration images, but there are {self.n:,}. "
                "Ask for a larger alpha or calibrate with more images."
            )
        return float(self.scores[self.n - rank])

    def _rank(self, alpha: float) -> int:
        """The largest k with k / (n + 1) <= alpha in floating point, so that threshold and p-values agree to the bit."""
        rank = int(alpha * (self.n + 1))
        while (rank + 1) / (self.n + 1) <= alpha:
            rank += 1
        while rank / (self.n + 1) > alpha:
            rank -= 1
        return min(rank, self.n)


def benjamini_hochberg(p_values: NDArray[np.float64], fdr: float) -> float:
    """The p-value [N] at or below which to call anomalies, so that an expected share of at most `fdr` of them is false.

    The largest fdr k / N that the k-th smallest p-value does not exceed; fdr / N where there is none, which no p-value
    reaches (Benjamini & Hochberg, Controlling the false discovery rate, JRSS B 1995; that it holds for conformal p-values,
    which share a calibration set: Bates et al., 2023).
    """
    count = len(p_values)
    limits = fdr * np.arange(1, count + 1) / count
    (kept,) = np.nonzero(np.sort(p_values) <= limits)
    return float(limits[kept[-1]] if len(kept) else limits[0])


def images_needed(alpha: float) -> int:
    """The fewest calibration images n for which a threshold at `alpha` exists: 1 / (n + 1) <= alpha."""
    if alpha < 1e-9:  # beyond what counting up in floating point can reach
        return math.ceil(1 / Fraction(alpha)) - 1
    needed = max(int(1 / alpha) - 1, 1)
    while 1 / (needed + 1) > alpha:
        needed += 1
    return needed
