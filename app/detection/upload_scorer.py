"""Scores of prepared uploads: the residual's score and the preparation's evidence in, one score on the usual scale out.

Preparing an upload (crop, flatten, centre) takes away what gave strangers away, but what it saw on the way still knows
(features.py). Its Mahalanobis distance to the evidence of normal uploads joins the residual's score, each in units of its own
99 % quantile over normal uploads. The sum is calibrated on uploads and put on the scale of untouched images order statistic
by order statistic, so that one threshold and one set of p-values are right for both. Knows no pixels and no files.
"""

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from app.detection.conformal import Calibration, CalibrationError

Values = NDArray[np.floating]

QUANTILE = 0.99
_SHRINK = 1e-3  # added to each variance, in mean variances


@dataclass(frozen=True)
class UploadScorer:
    """How unusual K statistics of a preparation are; fitted on normal uploads."""

    mean: NDArray[np.float64]  # [K]
    precision: NDArray[np.float64]  # [K, K] inverse covariance, shrunk
    units: NDArray[np.float64]  # [2] the 99 % quantiles of residual score and features distance

    @classmethod
    def fit(cls, scores: Values, features: Values) -> Self:
        """From the residual scores [N] and the evidence [N, K] of normal uploads."""
        features = np.asarray(features, np.float64)
        covariance = np.atleast_2d(np.cov(features.T))
        ridge = _SHRINK * np.trace(covariance) / len(covariance) + 1e-9
        mean, precision = features.mean(axis=0), np.linalg.inv(covariance + ridge * np.eye(len(covariance)))
        distances = _distances(features - mean, precision)
        units = np.maximum([np.quantile(scores, QUANTILE), np.quantile(distances, QUANTILE)], 1e-9)
        return cls(mean, precision, units)

    def combine(self, scores: Values, features: Values) -> NDArray[np.float64]:
        """Residual scores [N] and features [N, K] -> combined scores [N], higher = more anomalous."""
        distances = _distances(features - self.mean, self.precision)
        combined: NDArray[np.float64] = scores / self.units[0] + distances / self.units[1]
        return combined

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        return {f"evidence_{field.name}": getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[np.float64]]) -> Self:
        """What `arrays()` gave, taken out of `arrays`. Raises KeyError where it is not there."""
        return cls(**{field.name: arrays.pop(f"evidence_{field.name}") for field in fields(cls)})


@dataclass(frozen=True)
class QuantileMap:
    """Puts combined scores on the scale of a calibration with as many images."""

    features: UploadScorer
    combined: NDArray[np.float64]  # [n] combined scores of normal uploads, ascending
    usual: NDArray[np.float32]  # [n] scores of untouched normal images, ascending

    @classmethod
    def calibrated(cls, features: UploadScorer, combined: Values, calibration: Calibration) -> Self:
        """From the combined scores of n normal uploads and the calibration of n untouched images.

        Raises:
            CalibrationError: their numbers differ, or a score is not finite.
        """
        if len(combined) != calibration.n or not np.isfinite(combined).all():
            raise CalibrationError("Uploads must be calibrated on as many finite scores as untouched images.")
        return cls(features, np.sort(np.asarray(combined, np.float64)), calibration.scores)

    def score(self, scores: Values, features: Values) -> NDArray[np.float32]:
        """Residual scores [N] and features [N, K] of uploads -> scores [N] with the p-values that are right for uploads."""
        return self.place(self.features.combine(scores, features))

    def place(self, combined: Values) -> NDArray[np.float32]:
        """Combined scores -> the usual scale: between the same order statistics, in proportion; beyond them, straight on."""
        low, high, middle = self.combined[0], self.combined[-1], len(self.combined) // 2
        placed = np.interp(combined, self.combined, self.usual)
        rise = (self.usual[-1] - self.usual[middle]) / max(high - self.combined[middle], 1e-9)
        placed = np.where(combined > high, self.usual[-1] + (combined - high) * max(rise, 1e-9), placed)
        below = self.usual[0] * np.clip(combined / max(low, 1e-9), 0, 1)
        placed = np.where(combined < low, below, placed).astype(np.float32)
        rank = np.minimum(np.searchsorted(self.combined, combined, side="left"), len(self.combined) - 1)
        return np.where(self.combined[rank] == combined, self.usual[rank], placed)  # of equal ones, the lowest place


def _distances(centred: Values, precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mahalanobis distances [N] of centred vectors [N, K]."""
    squared: NDArray[np.float64] = np.einsum("nk,kl,nl->n", centred, precision, centred)
    return np.sqrt(np.maximum(squared, 0))
