"""Scores of prepared uploads: the image score and the upload features in, one score on the scale of unprepared images out.

Preparing an upload (crop, flatten, centre) removes much of what distinguishes an anomaly; the upload features keep it. Their
Mahalanobis distance to the features of normal uploads is added to the image score, each in units of its own 99 % quantile
over normal uploads. The sum is calibrated on uploads and mapped to the scale of unprepared images quantile by quantile, so
one threshold and one set of p-values hold for both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from app.detection.conformal import Calibration, CalibrationError

Values = NDArray[np.floating]

QUANTILE = 0.99
_RIDGE = 1e-3  # added to each variance, in mean variances


@dataclass(frozen=True)
class UploadScorer:
    """Combines image scores with K upload features; fitted on normal uploads."""

    mean: NDArray[np.float64]  # [K] of the features
    precision: NDArray[np.float64]  # [K, K] inverse covariance, regularised
    units: NDArray[np.float64]  # [2] the 99 % quantiles of the image score and of the feature distance

    @classmethod
    def fit(cls, scores: Values, features: Values) -> Self:
        """From the image scores [N] and the upload features [N, K] of normal uploads."""
        features = np.asarray(features, np.float64)
        covariance = np.atleast_2d(np.cov(features.T))
        ridge = _RIDGE * np.trace(covariance) / len(covariance) + 1e-9
        mean, precision = features.mean(axis=0), np.linalg.inv(covariance + ridge * np.eye(len(covariance)))
        distances = _mahalanobis(features - mean, precision)
        units = np.maximum([np.quantile(scores, QUANTILE), np.quantile(distances, QUANTILE)], 1e-9)
        return cls(mean, precision, units)

    def combine(self, scores: Values, features: Values) -> NDArray[np.float64]:
        """Image scores [N] and upload features [N, K] -> combined scores [N], higher = more anomalous."""
        distances = _mahalanobis(features - self.mean, self.precision)
        combined: NDArray[np.float64] = scores / self.units[0] + distances / self.units[1]
        return combined

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """The arrays that `from_arrays` reads."""
        return {f"evidence_{field.name}": getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Rebuild from `arrays()`. Raises KeyError where one is missing."""
        return cls(**{field.name: arrays[f"evidence_{field.name}"] for field in fields(cls)})


@dataclass(frozen=True)
class QuantileMap:
    """Quantile mapping of combined upload scores to the scale of image scores. Both calibrations have n images."""

    scorer: UploadScorer
    upload_scores: NDArray[np.float64]  # [n] combined scores of normal uploads, ascending
    reference_scores: NDArray[np.float32]  # [n] scores of unprepared normal images, ascending

    @classmethod
    def calibrated(cls, scorer: UploadScorer, combined: Values, calibration: Calibration) -> Self:
        """From the combined scores [n] of normal uploads and the calibration of n unprepared images.

        Raises:
            CalibrationError: the numbers of images differ, or a score is not finite.
        """
        if len(combined) != calibration.n or not np.isfinite(combined).all():
            raise CalibrationError("Uploads must be calibrated on as many finite scores as unprepared images.")
        return cls(scorer, np.sort(np.asarray(combined, np.float64)), calibration.scores)

    def score(self, scores: Values, features: Values) -> NDArray[np.float32]:
        """Image scores [N] and upload features [N, K] -> scores [N] whose p-values hold for uploads."""
        return self.map_scores(self.scorer.combine(scores, features))

    def map_scores(self, combined: Values) -> NDArray[np.float32]:
        """Quantile mapping: linear between matching order statistics, linear extrapolation outside."""
        source, target = self.upload_scores, self.reference_scores
        low, high, middle = source[0], source[-1], len(source) // 2
        mapped = np.interp(combined, source, target)
        slope = (target[-1] - target[middle]) / max(high - source[middle], 1e-9)
        mapped = np.where(combined > high, target[-1] + (combined - high) * max(slope, 1e-9), mapped)
        below = target[0] * np.clip(combined / max(low, 1e-9), 0, 1)
        mapped = np.where(combined < low, below, mapped).astype(np.float32)
        rank = np.minimum(np.searchsorted(source, combined, side="left"), len(source) - 1)
        return np.where(source[rank] == combined, target[rank], mapped)  # equal scores map to the lowest rank


def _mahalanobis(centred: Values, precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mahalanobis distances [N] of centred vectors [N, K]."""
    squared: NDArray[np.float64] = np.einsum("nk,kl,nl->n", centred, precision, centred)
    return np.sqrt(np.maximum(squared, 0))
