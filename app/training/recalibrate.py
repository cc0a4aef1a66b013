"""New versions without training: weights from elsewhere are adopted, a version is calibrated on other normal images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.detection.bundle import Bundle, EpochLosses
from app.detection.detector import pick_device
from app.detection.store import load, load_weights
from app.network.autoencoder import ModelConfig
from app.training.calibration import (
    Provenance,
    check_calibration_size,
    check_scorer,
    fit_image_scorer,
    fit_upload_scorer,
    make_bundle,
)
from app.training.datasets import CALIBRATION_SHARE, DataSet, LabelledImages, load_dataset, split
from app.training.publishing import describe_data, publish_measured, trained_on


@dataclass(frozen=True)
class CalibrateConfig:
    """Which normal images, which false-alarm rate, and where the new version goes."""

    data: str = "mnist"
    data_dir: Path = Path("data")
    root: Path = Path("model_store")
    name: str | None = None  # of the new version: the model's, or the data set's for adopted weights
    alpha: float = 0.01
    seed: int = 0
    calibration_share: float = CALIBRATION_SHARE
    scorer: str = "residual"
    device: str = "auto"


def adopt_weights(weights: Path, config: CalibrateConfig) -> Path:
    """Make a version of a bare state_dict file -> its folder. The scorer and the threshold are learnt from `config.data`.

    Calibration images should be new to the network. Those held back here were not if the weights were trained on the
    whole set; for a network as small as this one the difference is slight.

    Raises:
        StoreError, DataError, DeviceError, CalibrationError, UnknownScorer: before anything is written.
    """
    device = pick_device(config.device)
    check_scorer(config.scorer)
    model = load_weights(weights, ModelConfig(), str(weights)).to(device).eval()
    dataset = load_dataset(config.data, data_dir=config.data_dir)
    parts = split(dataset, config.seed, config.calibration_share)
    check_calibration_size(config.alpha, len(parts.calibration))
    origin = Provenance(
        name=config.name or dataset.name,
        alpha=config.alpha,
        training={"adopted_from": weights.name},
        data=describe_data(config.data, dataset, parts, config.seed, config.calibration_share),
        losses=EpochLosses(),
    )
    scorer = fit_image_scorer(config.scorer, model, parts.fit.images, device, config.seed)
    features = fit_upload_scorer(model, scorer, parts.fit, device, config.seed)
    bundle = make_bundle(model, scorer, features, parts.calibration, origin, device)
    return publish_measured(bundle, parts.test, config.root, device, fit=parts.fit)


def recalibrate(version: Path, config: CalibrateConfig) -> Path:
    """Publish a version again with a threshold from other normal images -> the new folder. Weights and scorer stay.

    All images of `config.data` calibrate, but for the test part of a set that brings one, and for what the network learnt
    from where it is the set of its own training.

    Raises:
        StoreError, DataError, DeviceError, CalibrationError: before anything is written.
    """
    device = pick_device(config.device)
    bundle = load(version)
    dataset = load_dataset(config.data, data_dir=config.data_dir)
    calibration, test = _unseen(bundle, dataset)
    check_calibration_size(config.alpha, len(calibration))
    card = bundle.card
    origin = Provenance(
        name=config.name or card.name,
        alpha=config.alpha,
        training={**card.training, "calibrated_from": bundle.label},
        data=_describe(config.data, dataset, bundle, len(calibration)),
        losses=card.losses,
    )
    model = bundle.model.to(device).eval()
    features = bundle.uploads.features if bundle.uploads else None
    calibrated = make_bundle(model, bundle.scorer, features, calibration, origin, device)
    if test is None:
        test_name = f"{dataset.name}, the calibration images themselves"
        return publish_measured(calibrated, calibration, config.root, device, test_name=test_name)
    return publish_measured(calibrated, test, config.root, device)


def _unseen(bundle: Bundle, dataset: DataSet) -> tuple[LabelledImages, LabelledImages | None]:
    """Calibration images that the network did not learn from, and test images that are none of these."""
    learnt_from = trained_on(bundle.card)
    if dataset.digest != learnt_from["sha256"]:
        return dataset.train, dataset.test
    parts = split(dataset, learnt_from["split_seed"], learnt_from["calibration_share"])
    return parts.calibration, parts.test


def _describe(source: str, dataset: DataSet, bundle: Bundle, calibration_images: int) -> dict[str, Any]:
    learnt_from = trained_on(bundle.card)
    if dataset.digest == learnt_from["sha256"]:
        return learnt_from
    return {
        "source": source,
        "name": dataset.name,
        "sha256": dataset.digest,
        "calibration_images": calibration_images,
        "test_images": len(dataset.test) if dataset.test else 0,
        "trained_on": learnt_from,
    }
