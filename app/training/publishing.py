"""The last step of every way to a version: a calibrated bundle and its normal test images in, a published folder out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from app.detection.bundle import Bundle, Card
from app.detection.detector import Detector
from app.detection.store import publish
from app.training.calibration import detect_all, measure, with_card
from app.training.datasets import DataError, DataSet, LabelledImages, Splits, load_dataset, split
from app.training.reporting.report import Report


def publish_measured(
    bundle: Bundle,
    test: LabelledImages,
    root: Path,
    device: torch.device,
    *,
    fit: LabelledImages | None = None,
    test_name: str | None = None,
    steps: NDArray[np.float32] | None = None,
    reconstructions: Mapping[int, NDArray[np.uint8]] | None = None,
) -> Path:
    """Evaluate on normal test images, complete the card's metrics, draw the report, publish -> the new version's folder.

    `fit` are the images that were learnt from, where they are at hand; `steps` and `reconstructions` are a training's own,
    see `Report`.
    """
    detector = Detector(bundle, str(device))
    detections, fitted = detect_all(detector, test), detect_all(detector, fit) if fit else None
    test_name = test_name or f"{bundle.card.data['name']}, test images"
    bundle = with_card(bundle, metrics=measure(bundle, detections, test_name, fitted))
    report = Report(bundle, test, detections, steps=steps, reconstructions=reconstructions or {})
    return publish(bundle, root, report.write)


def describe_data(source: str, dataset: DataSet, parts: Splits, seed: int, calibration_share: float) -> dict[str, Any]:
    """What the card tells of a split data set: enough to read the same images again and to notice that they changed."""
    return {
        "source": source,
        "name": dataset.name,
        "sha256": dataset.digest,
        "split_seed": seed,
        "calibration_share": calibration_share,
        "fit_images": len(parts.fit),
        "calibration_images": len(parts.calibration),
        "test_images": len(parts.test),
    }


def own_parts(data: Mapping[str, Any], data_dir: Path) -> Splits:
    """The parts of the data set that a card describes, split as they were.

    Raises:
        DataError: the images are not there any more, or are others.
    """
    dataset = load_dataset(data["source"], data_dir=data_dir)
    if dataset.digest != data["sha256"]:
        raise DataError(f"{data['source']} holds other images than the model was trained on.")
    return split(dataset, data["split_seed"], data["calibration_share"])


def trained_on(card: Card) -> dict[str, Any]:
    """The card's account of the data that the network learnt from, however often it was calibrated since."""
    origin: dict[str, Any] = card.data.get("trained_on", card.data)
    return origin
