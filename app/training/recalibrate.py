"""New versions without training: imported weights, another calibration, or an older version with its ONNX models added."""

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from app.detection.bundle import ONNX_FILES, Bundle
from app.detection.conformal import check_images
from app.detection.detector import Detector
from app.detection.imaging.decode import Preprocess
from app.detection.model_card import EpochLosses, Preparation, self_check_images
from app.detection.runtimes import choose_device, load_network
from app.detection.store import REPORT, load, publish
from app.network.foreign_weights import load_foreign_weights
from app.training.calibration import (
    ExportError,
    Provenance,
    bundle_files,
    check_export,
    make_bundle,
    with_card,
)
from app.training.config import ALPHA, CALIBRATION_SHARE, ScorerName, check_common
from app.training.datasets import DataError, DataSet, LabelledImages, load_dataset
from app.training.progress import SILENT, Progress
from app.training.publishing import check_writable, describe_data, fit_and_publish, publish_measured, trained_on
from app.training.scorer_fitting import score_images
from app.training.splits import split, split_again

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CalibrateConfig:
    """The normal images, the false-alarm rate, and the place of the new version."""

    data: str = "mnist"
    data_dir: Path = Path("data")
    root: Path = Path("model_store")
    name: str | None = None  # of the new version: the model's, or the data set's for imported weights
    alpha: float | None = None  # None: the detector's, ALPHA for imported weights
    seed: int = 0
    calibration_share: float = CALIBRATION_SHARE
    scorer: ScorerName = "residual"
    device: str = "auto"
    preprocess: Preprocess = "auto"  # auto: the model's, or chosen by the images for imported weights

    def __post_init__(self) -> None:
        """Raise TrainingError if a value is not acceptable."""
        check_common(
            self.name, ALPHA if self.alpha is None else self.alpha, self.calibration_share, self.scorer, self.preprocess
        )


class PreparationError(ValueError):
    """A detector cannot get this preparation; the message says what to do."""


def import_weights(weights: Path, config: CalibrateConfig, progress: Progress = SILENT) -> Path:
    """Publish a version from a bare state_dict file -> its folder. Scorer and threshold are fitted on `config.data`.

    Calibration images should be new to the network. If the weights were trained on the whole set, the images held back here
    are not; for a network as small as this one the difference is slight.

    Raises:
        WeightsError, DataError, DeviceError, TrainingError, CalibrationError: before anything is written.
    """
    device = torch.device(choose_device(config.device, "torch"))
    check_writable(config.root, config.name)
    model = load_foreign_weights(weights).to(device).eval()
    dataset = load_dataset(config.data, data_dir=config.data_dir, preprocess=config.preprocess, progress=progress)
    splits = split(dataset, config.seed, config.calibration_share)
    alpha = ALPHA if config.alpha is None else config.alpha
    check_images(alpha, len(splits.calibration))
    provenance = Provenance(
        name=config.name or dataset.name,
        alpha=alpha,
        preprocess=dataset.preprocess,
        training={"imported_from": weights.name},
        data=describe_data(config.data, dataset, splits, config.seed, config.calibration_share),
        losses=EpochLosses(),
    )
    return fit_and_publish(model, config.scorer, splits, provenance, config.root, device, config.seed, progress=progress)


def recalibrate(version: Path, config: CalibrateConfig, progress: Progress = SILENT) -> Path:
    """Publish a version again with a threshold from other normal images -> the new folder. Weights and scorer stay.

    All images of `config.data` calibrate, without its test part, and without the images that the network was trained on
    where it is the network's own training set.

    Raises:
        BundleError, DataError, DeviceError, TrainingError, PreparationError, CalibrationError: before anything is written.
    """
    device = torch.device(choose_device(config.device, "torch"))
    bundle = load(version)
    check_writable(config.root, config.name or bundle.card.name)
    preprocess = _preparation(bundle, config.preprocess)
    dataset = load_dataset(config.data, data_dir=config.data_dir, preprocess=preprocess, progress=progress)
    calibration, test = _unseen(bundle, dataset)
    card = bundle.card
    alpha = card.alpha if config.alpha is None else config.alpha
    check_images(alpha, len(calibration))
    provenance = Provenance(
        name=config.name or card.name,
        alpha=alpha,
        preprocess=preprocess,
        training={**card.training, "calibrated_from": bundle.label},
        data=_describe(config.data, dataset, bundle, len(calibration)),
        losses=card.losses,
    )
    network = load_network(bundle).to(device).eval()
    upload_scorer = bundle.uploads.scorer if bundle.uploads and preprocess == "digit" else None
    calibrated = make_bundle(network, upload_scorer, calibration, provenance, progress)
    if test is None:
        test_name = f"{dataset.name}, the calibration images themselves"
        return publish_measured(calibrated, calibration, config.root, device, test_name=test_name, progress=progress)
    return publish_measured(calibrated, test, config.root, device, progress=progress)


def _preparation(bundle: Bundle, asked: Preprocess) -> Preparation:
    """The preparation of the recalibrated version. Raises PreparationError."""
    own = bundle.card.preprocess
    if asked == "digit" and own == "none":
        raise PreparationError(
            f"{bundle.label} has no scorer of images that are prepared as digits; train it with --preprocess digit."
        )
    return own if asked == "auto" else asked


def add_onnx(version: Path, root: Path) -> Path:
    """Publish a version of an older release again in the store `root`, with its ONNX models -> the new folder.

    Everything else stays.

    Raises:
        BundleError, TrainingError, ExportError: before anything is written.
    """
    bundle = load(version)
    if all(name in bundle.files for name in ONNX_FILES):
        raise ExportError(f"{bundle.label} has its ONNX models already.")
    check_writable(root, bundle.card.name)
    network = load_network(bundle).eval()
    files = {**bundle.files, **bundle_files(network, bundle.calibration, bundle.uploads)}  # the ONNX files name the new weights
    bundle = replace(bundle, files=files)
    images = self_check_images(0, bundle.card.architecture.image_size, count=1_000)
    difference = check_export(score_images(network, images), Detector(bundle, "cpu", "onnx").detect(images).scores)
    bundle = with_card(bundle, onnx_max_relative_difference=difference)

    def copy_report(folder: Path) -> None:
        shutil.copytree(version / REPORT, folder, dirs_exist_ok=True)

    return publish(bundle, root, copy_report)


def _unseen(bundle: Bundle, dataset: DataSet) -> tuple[LabelledImages, LabelledImages | None]:
    """Calibration images that the network was not trained on, and test images that are not among them."""
    origin = trained_on(bundle.card)
    if dataset.digest == origin["sha256"] and not dataset.is_described_by(origin):
        raise DataError(
            f"{bundle.label} was trained on these images with other labels, by which they were split. Give the same labels, or "
            "images that are new to it."
        )
    if not dataset.is_described_by(origin):
        if dataset.name == origin["name"]:
            logger.warning(
                "%s was trained on a set of the same name, %s, with other images, labels or preparation. Images that it was "
                "trained on score too low to calibrate with; give images that are new to it.",
                bundle.label,
                dataset.name,
            )
        return dataset.train, dataset.test
    parts = split_again(dataset, origin)
    return parts.calibration, parts.test


def _describe(source: str, dataset: DataSet, bundle: Bundle, calibration_images: int) -> dict[str, Any]:
    origin = trained_on(bundle.card)
    if dataset.is_described_by(origin):
        return origin
    return {
        "source": source,
        "name": dataset.name,
        "sha256": dataset.digest,
        "labels_sha256": dataset.labels_digest,
        "calibration_images": calibration_images,
        "test_images": len(dataset.test) if dataset.test else 0,
        "trained_on": origin,
    }
