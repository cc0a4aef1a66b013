"""Scores of prepared uploads: image, image score and upload features in, one score on the scale of unprepared images out.

Preparing an upload (crop, flatten, centre) removes much of what distinguishes an anomaly; the upload features keep it. Their
Mahalanobis distance to the features of normal uploads is added to the image score, each in units of its own 99 % quantile
over normal uploads, and so are the log-odds of small networks (upload_networks.py). An upload that is cleaner than usual
is not anomalous, so most features count on one side only.

Uploads are calibrated by kind (Mondrian conformal prediction: Vovk, Gammerman & Shafer, Algorithmic Learning in a Random
World, 2005, section 4.5): the sum is compared with normal uploads of its own group, and mapped to the scale of unprepared
images quantile by quantile, so one threshold holds for all groups. Groups with few calibration uploads share a calibration;
the false-alarm rate then holds for these groups together, not for each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from app.detection.conformal import Calibration, CalibrationError
from app.detection.imaging.upload_features import FEATURE_NAMES, ONE_SIDED, SCORED_FEATURES, Groups, upload_groups
from app.detection.upload_networks import UploadNetworks

Values = NDArray[np.floating]
Images = NDArray[np.uint8]

QUANTILE = 0.99
OLD_FEATURES = 15  # in versions of older releases: the first of FEATURE_NAMES
OLD_MAX_DEVIATION = 1e6  # they have no limit, which a version cannot state as infinity
FEATURE_WEIGHT = 0.3  # of the feature distance; between 0.15 and 0.5 the share of caught anomalies changes by 1 %
MIN_STD = 0.1  # of a principal axis of the features: an axis that hardly varies in calibration must not outvote all others
NEAR_CONSTANT = 1e-3  # a feature with a smaller standard deviation is left out
MIN_GROUP = 200  # calibration uploads; smaller groups are calibrated together
MIN_UPLOADS = 20  # of a group, in a calibration together with others; fewer are too few to represent the group
MAX_DEVIATION = 8.0  # standard deviations that one principal axis counts at most


@dataclass(frozen=True)
class UploadScorer:
    """Combines image scores with upload features; fitted on normal uploads. Uses the first K features of an upload."""

    centre: NDArray[np.float64]  # [K] of the features
    sides: NDArray[np.float64]  # [K], 1: only larger values count, -1: only smaller ones, 0: both
    whitening: NDArray[np.float64]  # [K, K] from deviations to principal axes with unit variance
    max_deviation: float  # of an axis
    units: NDArray[np.float64]  # [2] the 99 % quantiles of the image score and of the feature distance
    networks: UploadNetworks | None = None  # None in versions of older releases

    @classmethod
    def fit(cls, scores: Values, features: Values, networks: UploadNetworks | None = None) -> Self:
        """From the image scores [N] and the upload features [N, K] of normal uploads."""
        features = np.asarray(features, np.float64)[:, : len(SCORED_FEATURES)]
        centre, sides = np.median(features, axis=0), np.asarray(ONE_SIDED, np.float64)[: features.shape[1]]
        deviations = _deviations(features, centre, sides)
        used = (deviations.std(axis=0) > NEAR_CONSTANT) & SCORED_FEATURES[: features.shape[1]]
        variances, axes = np.linalg.eigh(np.atleast_2d(deviations.T @ deviations) / len(deviations) * np.outer(used, used))
        whitening = used[:, None] * axes / np.sqrt(np.maximum(variances, MIN_STD**2))
        unscaled = cls(centre, sides, whitening, MAX_DEVIATION, np.ones(2))
        units = [np.quantile(scores, QUANTILE), np.quantile(unscaled.distances(features), QUANTILE)]
        return cls(centre, sides, whitening, MAX_DEVIATION, np.maximum(units, 1e-9) / (1, FEATURE_WEIGHT), networks)

    def distances(self, features: Values) -> NDArray[np.float64]:
        """Mahalanobis distances [N] of upload features [N, >= K] to those of normal uploads."""
        axes = _deviations(features[:, : len(self.centre)], self.centre, self.sides) @ self.whitening
        distances: NDArray[np.float64] = np.linalg.norm(np.clip(axes, -self.max_deviation, self.max_deviation), axis=1)
        return distances

    def combine(self, scores: Values, images: Images, features: Values) -> NDArray[np.float64]:
        """Image scores [N], prepared images [N, S, S], upload features [N, >= K] -> scores [N], higher = more anomalous."""
        combined: NDArray[np.float64] = scores / self.units[0] + self.distances(features) / self.units[1]
        return combined if self.networks is None else combined + self.networks.score(images, features)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays that `from_arrays` reads."""
        return {
            "evidence_mean": self.centre,
            "evidence_sides": self.sides,
            "evidence_whitening": self.whitening,
            "evidence_max_deviation": np.asarray(self.max_deviation),
            "evidence_units": self.units,
            **(self.networks.arrays() if self.networks else {}),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Rebuild from `arrays()`, or from mean and precision, which older releases wrote.

        Raises:
            KeyError, ValueError: an array is missing, or is not for the features of uploads.
        """
        centre, units = arrays["evidence_mean"], arrays["evidence_units"]
        old = "evidence_precision" in arrays
        sides = np.zeros(len(centre)) if old else arrays["evidence_sides"]
        whitening = np.linalg.cholesky(arrays["evidence_precision"]) if old else arrays["evidence_whitening"]
        cap = OLD_MAX_DEVIATION if old else float(arrays["evidence_max_deviation"])
        count = len(centre)
        if count not in (OLD_FEATURES, len(FEATURE_NAMES)) or sides.shape != (count,) or whitening.shape != (count, count):
            raise ValueError(f"the upload scorer is not for {len(FEATURE_NAMES)} upload features")
        if units.shape != (2,) or not cap > 0:
            raise ValueError("the upload scorer has no units, or no largest deviation")
        return cls(centre, sides, whitening, cap, units, UploadNetworks.from_arrays(arrays))


def _deviations(features: Values, centre: NDArray[np.float64], sides: NDArray[np.float64]) -> NDArray[np.float64]:
    """Deviations [N, K] from the centre; 0 on the side that does not count."""
    deviations = np.asarray(features, np.float64) - centre
    counted: NDArray[np.float64] = np.where(deviations * sides < 0, 0.0, deviations)
    return counted


@dataclass(frozen=True)
class QuantileMap:
    """Quantile mapping of the combined scores of one group of uploads to the scale of image scores."""

    upload_scores: NDArray[np.float64]  # [n] combined scores of normal uploads, ascending
    reference_scores: NDArray[np.float32]  # [n] the image scores that they map to, ascending

    @classmethod
    def calibrated(cls, combined: Values, calibration: Calibration) -> Self:
        """From the combined scores [n] of normal uploads and the calibration of unprepared images.

        The k-th smallest of n scores has the p-value (n - k + 2) / (n + 1), and maps to the largest image score with a
        p-value that is not smaller. So the p-value of a mapped score is valid within the group.

        Raises:
            CalibrationError: there is no score, or one is not finite.
        """
        source = np.sort(np.asarray(combined, np.float64))
        if not len(source) or not np.isfinite(source).all():
            raise CalibrationError("Uploads must be calibrated on finite scores.")
        p_values = np.arange(len(source) + 1, 1, -1) / (len(source) + 1)
        ranks = np.floor((1 - p_values) * (calibration.n + 1) + 1e-9).astype(np.intp)  # 0 is the smallest
        return cls(source, calibration.scores[np.minimum(ranks, calibration.n - 1)])

    @property
    def n(self) -> int:
        return len(self.upload_scores)

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


class MappedUploads(NamedTuple):
    """The scores of N uploads, and the calibration that each is compared with."""

    scores: NDArray[np.float32]  # [N] on the scale of image scores
    sizes: NDArray[np.intp]  # [N] number of calibration uploads
    calibrated: NDArray[np.bool_]  # [N] False: the upload's group was not calibrated, it is compared with all uploads


@dataclass(frozen=True)
class UploadCalibration:
    """A scorer of uploads with calibrations of the groups, and one of all uploads for groups that have none."""

    scorer: UploadScorer
    pooled: QuantileMap
    groups: Mapping[int, QuantileMap]  # by index in GROUPS, some may share one; empty in versions of older releases
    group_of: Groups  # [n] group of each calibration upload, in ascending order of combined scores; -1: none; may be empty

    @classmethod
    def calibrated(
        cls, scorer: UploadScorer, combined: Values, groups: Groups, calibration: Calibration, min_group: int = 1
    ) -> Self:
        """From the combined scores [n] and groups [n] of normal uploads; `groups` is empty where they are not known.

        `min_group` is the number of uploads that a threshold at the model's alpha needs. Groups that are too small for a
        calibration of their own share one; groups of fewer than MIN_UPLOADS have none.

        Raises:
            CalibrationError: there is no score, or one is not finite.
        """
        order = np.argsort(combined, kind="stable")
        combined, groups = np.asarray(combined)[order], groups[order] if len(groups) else groups
        maps: dict[int, QuantileMap] = {}
        for together in _shared_calibrations(groups, min_group):
            maps |= dict.fromkeys(together, QuantileMap.calibrated(combined[np.isin(groups, together)], calibration))
        kept = np.where(np.isin(groups, list(maps)), groups, -1).astype(np.int8)
        return cls(scorer, QuantileMap.calibrated(combined, calibration), maps, kept)

    @property
    def calibrations(self) -> list[NDArray[np.float64]]:
        """The combined scores of each calibration, ascending: the pooled one first, then those of the groups."""
        own = {id(each): each.upload_scores for each in self.groups.values()}  # groups may share one
        return [self.pooled.upload_scores, *own.values()]

    def score(self, scores: Values, images: Images, features: Values) -> MappedUploads:
        """Map the image scores [N] of prepared images [N, S, S] with upload features [N, K]."""
        combined = self.scorer.combine(scores, images, features)
        mapped = self.pooled.map_scores(combined)
        sizes = np.full(len(mapped), self.pooled.n, np.intp)
        calibrated = np.full(len(mapped), not len(self.group_of))
        groups = upload_groups(features)
        for group, quantiles in self.groups.items():
            members = groups == group
            if members.any():
                mapped[members] = quantiles.map_scores(combined[members])
                sizes[members], calibrated[members] = quantiles.n, True
        return MappedUploads(mapped, sizes, calibrated)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays that `from_arrays` reads."""
        stored: dict[str, NDArray[Any]] = {**self.scorer.arrays(), "upload_calibration": self.pooled.upload_scores}
        return {**stored, "upload_groups": self.group_of} if len(self.group_of) else stored

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], calibration: Calibration, min_group: int = 1) -> Self:
        """Rebuild from `arrays()`, with the same `min_group`. Raises KeyError, ValueError or CalibrationError."""
        groups, scorer = arrays.get("upload_groups", np.zeros(0, np.int8)), UploadScorer.from_arrays(arrays)
        combined = arrays["upload_calibration"]
        if combined.ndim != 1 or groups.shape not in ((0,), combined.shape):
            raise ValueError("the calibration of uploads does not belong to their groups")
        return cls.calibrated(scorer, combined, groups, calibration, min_group)


def _shared_calibrations(groups: Groups, min_group: int) -> list[list[int]]:
    """Partition the groups of uploads [n]; each list shares one calibration. The list of small groups is first."""
    names, counts = np.unique(groups[groups >= 0], return_counts=True)
    sizes = {int(name): int(count) for name, count in zip(names, counts, strict=True) if count >= MIN_UPLOADS}
    large = sorted((group for group, n in sizes.items() if n >= max(MIN_GROUP, min_group)), key=lambda group: sizes[group])
    small = [group for group in sizes if group not in large]
    if 0 < sum(sizes[group] for group in small) < min_group and large:  # too few for a threshold: with the next larger group
        small.append(large.pop(0))
    if sum(sizes[group] for group in small) < min_group:
        small = []
    return [each for each in (small, *([group] for group in large)) if each]
