"""Everything after the training loop: fitting the scorers, calibration, export, evaluation, report, publishing.

Training, importing weights and recalibrating all publish through this file.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from app.detection.bundle import Bundle
from app.detection.detector import Detector
from app.detection.drafts import DRAFT_PREFIX
from app.detection.imaging.upload_features import GROUPS, upload_groups
from app.detection.model_card import Card, Preparation
from app.detection.store import publish
from app.network.autoencoder import Autoencoder
from app.network.detector_network import DetectorNetwork, normalise
from app.training.calibration import (
    Provenance,
    detect_all,
    make_bundle,
    measure,
    with_card,
)
from app.training.config import TrainingError
from app.training.datasets import DataError, DataSet, LabelledImages, load_dataset
from app.training.progress import SILENT, Progress
from app.training.reporting.report import Report
from app.training.scorer_fitting import fit_scorer
from app.training.splits import SMALLEST_CLASS, Splits, split_again
from app.training.upload_fitting import fit_upload_scorer, uploads_of

_UPLOADS, _UPLOADS_SEED = 1_000, 20  # drawn from test images for a picture of the report, in 4 s


def check_writable(root: Path, name: str | None) -> None:
    """Check, before any work, that a version can be published as `name` in `root`, which need not exist. Leaves nothing there.

    Raises TrainingError.
    """
    home = root / (name or "")
    try:
        existing = next(folder for folder in (home, *home.parents) if folder.exists())
        TemporaryDirectory(prefix=DRAFT_PREFIX, dir=existing).cleanup()
    except OSError as error:
        raise TrainingError(f"The store {root} cannot be written: {error.strerror}. Choose another with --store.") from None


class TrainingCurves(NamedTuple):
    """A training's own part of the report."""

    steps: NDArray[np.float32]  # [steps], the loss of every iteration
    reconstructions: Mapping[int, NDArray[np.uint8]]  # epoch -> reconstructed test images [K, S, S]


def fit_and_publish(
    model: Autoencoder,
    scorer: str,
    splits: Splits,
    provenance: Provenance,
    root: Path,
    device: torch.device,
    seed: int,
    curves: TrainingCurves | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Fit the scorer called `scorer` to a trained network, calibrate, export, evaluate and publish -> the version's folder.

    Without the preparation of digits, uploads are scored as images are, and there is no scorer of uploads.

    Raises:
        CalibrationError, ExportError: nothing was published.
    """
    images = normalise(torch.tensor(splits.fit.images))
    network = DetectorNetwork(model, fit_scorer(scorer, model, images, seed=seed, progress=progress)).to(device).eval()
    prepares = provenance.preprocess == "digit"
    upload_scorer = fit_upload_scorer(network, splits.fit, seed, progress) if prepares else None
    bundle = make_bundle(network, upload_scorer, splits.calibration, provenance, progress)
    return publish_measured(bundle, splits.test, root, device, curves=curves, progress=progress)


def publish_measured(
    bundle: Bundle,
    test: LabelledImages,
    root: Path,
    device: torch.device,
    *,
    test_name: str | None = None,
    curves: TrainingCurves | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Evaluate on normal test images, complete the card's metrics, draw the report, publish -> the new version's folder."""
    detector = Detector(bundle, str(device))
    detections = detect_all(detector, test, progress.begin("Evaluating", len(test)))
    test_name = test_name or f"{bundle.card.data['name']}, test images"
    bundle = with_card(bundle, metrics=measure(bundle, detections, test_name))
    steps, reconstructions = curves or (None, {})
    progress.begin("Drawing the report")
    uploads = flag_uploads(detector, test.take(np.arange(min(_UPLOADS, len(test))))) if bundle.uploads else {}
    report = Report(bundle, test, detections, steps, reconstructions, uploads)
    return publish(bundle, root, report.write)


def flag_uploads(detector: Detector, images: LabelledImages) -> dict[str, NDArray[np.bool_]]:
    """Whether each upload is flagged, by the name of its group: the images themselves if they are uploads, else redrawn."""
    uploads = uploads_of(images, _UPLOADS_SEED)
    flagged = detector.detect(uploads.images, uploads.features).p_values <= detector.bundle.card.alpha
    groups = upload_groups(uploads.features)
    return {GROUPS[group]: flagged[groups == group] for group in np.unique(groups)}


def describe_data(source: str, dataset: DataSet, parts: Splits, seed: int, calibration_share: float) -> dict[str, Any]:
    """A split data set as the card states it: enough to read the same images again and to notice a change."""
    return {
        "source": source,
        "name": dataset.name,
        "sha256": dataset.digest,
        "labels_sha256": dataset.labels_digest,
        "split_seed": seed,
        "calibration_share": calibration_share,
        "smallest_class": SMALLEST_CLASS,
        "fit_images": len(parts.fit),
        "calibration_images": len(parts.calibration),
        "test_images": len(parts.test),
    }


def own_splits(
    data: Mapping[str, Any], data_dir: Path, preprocess: Preparation = "digit", progress: Progress = SILENT
) -> Splits:
    """The parts of the data set that a card describes, split as they were.

    Raises:
        DataError: the images are not there any more, or they or their labels are others.
    """
    dataset = load_dataset(data["source"], data_dir=data_dir, preprocess=preprocess, progress=progress)
    if not dataset.is_described_by(data):
        raise DataError(f"{data['source']} holds other images or labels than the model was trained on.")
    return split_again(dataset, data)


def trained_on(card: Card) -> dict[str, Any]:
    """The card's account of the data that the network learnt from, however often it was calibrated since."""
    origin: dict[str, Any] = card.data.get("trained_on", card.data)
    return origin
