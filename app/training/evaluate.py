"""The evaluation: a detector, its normal test images and sets of anomalies in, figures and pictures out.

Published versions are immutable, so the pictures go to a folder outside the store.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.detection.bundle import Card
from app.detection.conformal import images_needed
from app.detection.detector import Detections, Detector
from app.training.calibration import RATES, detect_all
from app.training.datasets import DataError, LabelledImages, Pixels, load_dataset
from app.training.publishing import own_parts
from app.training.reporting import plots
from app.training.reporting.metrics import Ranking, Share, Uniformity, ranking, roc, share, uniformity


@dataclass(frozen=True)
class NamedImages:
    """Images [N, S, S] and what to call them."""

    name: str
    labelled: LabelledImages

    @property
    def images(self) -> Pixels:
        return self.labelled.images


@dataclass(frozen=True)
class SetFigures:
    """How one set of anomalies fares against the normal test images."""

    name: str
    images: int
    ranking: Ranking
    plain_error: Ranking  # the same of the mean squared error, for comparison
    caught: Share  # at the threshold


@dataclass(frozen=True)
class FalseAlarms:
    """The share of normal test images called anomalies where `alpha` was asked for."""

    alpha: float
    measured: Share


@dataclass(frozen=True)
class Evaluation:
    """All figures of one run."""

    model: str
    scorer: str
    alpha: float
    threshold: float
    normal: str
    normal_images: int
    reconstruction_error: float  # mean over the normal test images
    false_alarms: tuple[FalseAlarms, ...]
    uniformity: Uniformity
    sets: tuple[SetFigures, ...]

    @property
    def mean(self) -> dict[str, float]:
        """Each figure's mean over the sets; empty where there are none."""
        if not self.sets:
            return {}
        rankings = {name: [getattr(each.ranking, name) for each in self.sets] for name in Ranking._fields}
        caught = [each.caught.value for each in self.sets]
        plain = [each.plain_error.auroc for each in self.sets]
        columns = {**rankings, "caught": caught, "plain_error_auroc": plain}
        return {name: float(np.mean(values)) for name, values in columns.items()}

    def as_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and finite numbers."""
        content = asdict(self)
        content["uniformity"] = self.uniformity._asdict()
        content["false_alarms"] = [{"alpha": each.alpha, **each.measured._asdict()} for each in self.false_alarms]
        content["sets"] = [
            {
                "name": each.name,
                "images": each.images,
                **each.ranking._asdict(),
                "plain_error": each.plain_error._asdict(),
                "caught": each.caught._asdict(),
            }
            for each in self.sets
        ]
        return {**content, "mean": self.mean}


def normal_test_images(card: Card, source: str | None, data_dir: Path) -> NamedImages:
    """What the anomalies are compared with: `source`, or the model's own test images where none is given.

    Raises:
        DataError: they cannot be read, or the model has none of its own.
    """
    if source is not None:
        return named_images(source, data_dir)
    try:
        if "split_seed" in card.data:
            return NamedImages(card.data["name"], own_parts(card.data, data_dir).test)
        dataset = load_dataset(card.data["source"], data_dir=data_dir)
        if dataset.test is not None:
            return NamedImages(dataset.name, dataset.test)
    except DataError as error:
        raise DataError(f"{error} Or name other normal images with --normal.") from error
    raise DataError(f"All images of {card.data['name']} served to calibrate; name other normal images with --normal.")


def named_images(source: str, data_dir: Path) -> NamedImages:
    """The images to judge of any data set: its test part, or all where it has none. Raises DataError."""
    dataset = load_dataset(source, data_dir=data_dir)
    return NamedImages(dataset.name, dataset.judged)


def evaluate(detector: Detector, normal: NamedImages, anomalies: Sequence[NamedImages], out: Path | None) -> Evaluation:
    """Judge everything, compute the figures and, where `out` is a folder or can be made one, draw them there."""
    card = detector.bundle.card
    normal_seen = detect_all(detector, normal.labelled)
    seen = [detect_all(detector, each.labelled) for each in anomalies]
    calibration = detector.bundle.calibration
    evaluation = Evaluation(
        model=detector.bundle.label,
        scorer=card.scorer,
        alpha=card.alpha,
        threshold=card.threshold,
        normal=normal.name,
        normal_images=len(normal_seen.scores),
        reconstruction_error=float(normal_seen.reconstruction_errors.mean()),
        false_alarms=tuple(
            FalseAlarms(rate, share(normal_seen.p_values <= rate)) for rate in RATES if calibration.n >= images_needed(rate)
        ),
        uniformity=uniformity(normal_seen.p_values, normal_seen.scores, calibration.scores),
        sets=tuple(
            _figures(each.name, normal_seen, found, card.threshold) for each, found in zip(anomalies, seen, strict=True)
        ),
    )
    if out is not None:
        _draw(out, card, [normal, *anomalies], [normal_seen, *seen], evaluation)
    return evaluation


def _figures(name: str, normal: Detections, anomalous: Detections, threshold: float) -> SetFigures:
    return SetFigures(
        name=name,
        images=len(anomalous.scores),
        ranking=ranking(normal.scores, anomalous.scores),
        plain_error=ranking(normal.reconstruction_errors, anomalous.reconstruction_errors),
        caught=share(anomalous.scores > threshold),
    )


def _draw(out: Path, card: Card, sets: Sequence[NamedImages], seen: Sequence[Detections], evaluation: Evaluation) -> None:
    out.mkdir(parents=True, exist_ok=True)
    normal, *anomalous = seen
    plots.save(plots.p_value_uniformity(normal.p_values), out / "p_values.png")
    scores = {each.name: found.scores for each, found in zip(sets[1:], anomalous, strict=True)}
    plots.save(plots.errors(normal.scores, card.threshold, card.alpha, scores), out / "errors.png")
    for each, found in zip(sets, seen, strict=True):
        figure = plots.extremes(each.images, found.scores, each.name)
        plots.save(figure, out / f"extremes_{each.name}.png")
    if scores:
        curves = {each.name: (*roc(normal.scores, scores[each.name]), each.ranking.auroc) for each in evaluation.sets}
        plots.save(plots.roc_curves(curves), out / "roc.png")
