"""The evaluation: a detector, normal test images and sets of anomalies in, figures and pictures out.

Published versions are immutable, so the pictures go to a folder outside the store.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.detection.detector import Detections, Detector
from app.detection.model_card import Card, Preparation
from app.training.calibration import detect_all, reachable_rates
from app.training.datasets import DataError, LabelledImages, Pixels, load_dataset
from app.training.progress import SILENT, Progress
from app.training.publishing import own_splits, trained_on
from app.training.reporting import plots
from app.training.reporting.metrics import Ranking, Share, Uniformity, ranking, roc, share, uniformity
from app.training.splits import split_again


@dataclass(frozen=True)
class NamedImages:
    """Images [N, S, S] and their name in tables and pictures."""

    name: str
    labelled: LabelledImages

    @property
    def images(self) -> Pixels:
        return self.labelled.images


@dataclass(frozen=True)
class SetFigures:
    """The figures of one set of anomalies against the normal test images."""

    name: str
    images: int
    ranking: Ranking
    plain_error: Ranking  # of the mean squared error alone, for comparison
    caught: Share  # of the set, above the threshold


@dataclass(frozen=True)
class FalseAlarms:
    """The share of normal test images that are flagged at `alpha`."""

    alpha: float
    measured: Share


@dataclass(frozen=True)
class Evaluation:
    """All figures of one evaluation."""

    model: str
    scorer: str
    alpha: float
    threshold: float
    normal: str
    normal_images: int
    reconstruction_error: float  # mean over the normal test images
    false_alarms: tuple[FalseAlarms, ...]
    uncalibrated: int  # images of kinds that the detector was not calibrated on, normal or not
    uniformity: Uniformity
    sets: tuple[SetFigures, ...]

    @property
    def mean(self) -> dict[str, float]:
        """The mean of each figure over the sets; empty without sets."""
        if not self.sets:
            return {}
        rows = [
            {**asdict(each.ranking), "caught": each.caught.value, "plain_error_auroc": each.plain_error.auroc}
            for each in self.sets
        ]
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    def as_json(self) -> dict[str, Any]:
        """The figures as dicts, lists, strings and finite numbers."""
        content = asdict(self)
        for alarms in content["false_alarms"]:
            alarms |= alarms.pop("measured")
        for figures in content["sets"]:
            figures |= figures.pop("ranking")
        return {**content, "mean": self.mean}


def normal_test_images(card: Card, source: str | None, data_dir: Path, progress: Progress = SILENT) -> NamedImages:
    """Load the images that anomalies are compared with: those of `source`, or the model's own test images if it is None.

    Of a set that the model was trained on, these are the images that were neither fitted nor calibrated on.

    Raises:
        DataError: they cannot be read, or all of them calibrated the model.
    """
    if source is not None:
        dataset = load_dataset(source, data_dir=data_dir, preprocess=card.preprocess, progress=progress)
        if dataset.is_described_by(origin := trained_on(card)):
            return NamedImages(dataset.name, split_again(dataset, origin).test)
        if dataset.digest == origin["sha256"]:
            raise DataError(f"{source} has other labels than in the training, by which it was split; give the same ones.")
        if dataset.test is None and dataset.digest == card.data["sha256"]:
            raise DataError(f"All images of {source} served to calibrate; name other normal images with --normal.")
        return NamedImages(dataset.name, dataset.test_or_all)
    try:
        if "split_seed" in card.data:
            return NamedImages(card.data["name"], own_splits(card.data, data_dir, card.preprocess, progress).test)
        dataset = load_dataset(card.data["source"], data_dir=data_dir, preprocess=card.preprocess, progress=progress)
        if dataset.digest != card.data["sha256"]:
            raise DataError(f"{card.data['source']} holds other images than the model was calibrated with.")
        if dataset.test is not None:
            return NamedImages(dataset.name, dataset.test)
    except DataError as error:
        raise DataError(f"{error} Or name other normal images with --normal.") from error
    raise DataError(f"All images of {card.data['name']} served to calibrate; name other normal images with --normal.")


def named_images(source: str, data_dir: Path, preprocess: Preparation = "digit", progress: Progress = SILENT) -> NamedImages:
    """Load the test part of a data set, or all of its images if it has none. Raises DataError."""
    dataset = load_dataset(source, data_dir=data_dir, preprocess=preprocess, progress=progress)
    return NamedImages(dataset.name, dataset.test_or_all)


def evaluate(
    detector: Detector, normal: NamedImages, anomalies: Sequence[NamedImages], out: Path, progress: Progress = SILENT
) -> Evaluation:
    """Score all images, compute the figures and draw the pictures into the folder `out`, which is made if it is missing."""
    card = detector.bundle.card
    calibration = detector.bundle.calibration
    advance = progress.begin("Scoring", sum(len(each.images) for each in (normal, *anomalies)))
    on_normal = detect_all(detector, normal.labelled, advance)
    on_anomalies = [detect_all(detector, each.labelled, advance) for each in anomalies]
    evaluation = Evaluation(
        model=detector.bundle.label,
        scorer=card.scorer,
        alpha=card.alpha,
        threshold=card.threshold,
        normal=normal.name,
        normal_images=len(on_normal.scores),
        reconstruction_error=float(on_normal.reconstruction_errors.mean()),
        false_alarms=tuple(FalseAlarms(rate, share(on_normal.p_values <= rate)) for rate in reachable_rates(on_normal)),
        uncalibrated=sum(int((~each.calibrated).sum()) for each in (on_normal, *on_anomalies)),
        uniformity=uniformity(on_normal.p_values, calibration.p_values(calibration.scores)),
        sets=tuple(
            _figures(each.name, on_normal, detections, card.threshold)
            for each, detections in zip(anomalies, on_anomalies, strict=True)
        ),
    )
    progress.begin("Drawing pictures")
    _draw(out, card, [normal, *anomalies], [on_normal, *on_anomalies], evaluation)
    return evaluation


def _figures(name: str, normal: Detections, anomalous: Detections, threshold: float) -> SetFigures:
    return SetFigures(
        name=name,
        images=len(anomalous.scores),
        ranking=ranking(normal.scores, anomalous.scores),
        plain_error=ranking(normal.reconstruction_errors, anomalous.reconstruction_errors),
        caught=share(anomalous.scores > threshold),
    )


def _draw(out: Path, card: Card, sets: Sequence[NamedImages], found: Sequence[Detections], evaluation: Evaluation) -> None:
    """Draw the pictures of all sets, the normal one first, with their detections."""
    out.mkdir(parents=True, exist_ok=True)
    normal, *anomalous = found
    plots.save(plots.p_value_uniformity(normal.p_values), out / "p_values.png")
    scores = {each.name: detections.scores for each, detections in zip(sets[1:], anomalous, strict=True)}
    plots.save(plots.errors(normal.scores, card.threshold, card.alpha, scores), out / "errors.png")
    for each, detections in zip(sets, found, strict=True):
        plots.save(plots.extremes(each.images, detections.scores, each.name), out / f"extremes_{each.name}.png")
    if scores:
        curves = {each.name: (*roc(normal.scores, scores[each.name]), each.ranking.auroc) for each in evaluation.sets}
        plots.save(plots.roc_curves(curves, card.alpha), out / "roc.png")
        caught = {each.name: each.caught for each in evaluation.sets}
        plots.save(plots.shares(f"Share caught at alpha {card.alpha:g}", "caught", caught), out / "caught.png")
