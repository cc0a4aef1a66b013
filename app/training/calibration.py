"""A trained network and normal images in, a calibrated `Bundle` out: the end of training, importing and recalibrating.

Images are uint8 [N, S, S]. Nothing here changes the weights, reads a data set or writes a file.
"""

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.detection.bundle import DECODER_ONNX, DETECTOR_ONNX, SCORER, SCORES_ONNX, WEIGHTS, Bundle, write_npz
from app.detection.conformal import Calibration, check_images, images_needed, largest_rank
from app.detection.detector import Detections, Detector
from app.detection.imaging.upload_features import GROUPS, upload_groups
from app.detection.model_card import PREPROCESSING, Architecture, Card, EpochLosses, Preparation, SelfCheck, self_check_images
from app.detection.upload_scorer import UploadCalibration, UploadScorer
from app.network.autoencoder import save_autoencoder
from app.network.detector_network import DetectorNetwork, OnnxModels, export_onnx, normalise
from app.training.datasets import LabelledImages
from app.training.progress import SILENT, Advance, Progress, no_steps
from app.training.scorer_fitting import score_images
from app.training.upload_fitting import uploads_of

Images = NDArray[np.uint8]
Floats = NDArray[np.float32]

CHUNK = 8192  # images in one forward pass: 25 MB of float32 pixels
RATES = (0.001, 0.01, 0.05, 0.1)  # false-alarm rates that are reported
COMPARED_IMAGES = 1_000  # calibration images whose scores are compared between ONNX Runtime and torch
MAX_ONNX_DIFFERENCE = 1e-3  # largest relative difference of a score that is published
# Calibration scores are raised by this, relative to the score or to the median: served scores differ from torch's by up to
# 6e-5, and an image that equals a calibration image must not score higher than it.
_MARGIN = 1e-4
_SELF_CHECK_SEED = 28
_CALIBRATION_UPLOADS_SEED = 1_000_003  # other pens and papers than those that the features were fitted on


@dataclass(frozen=True)
class Provenance:
    """The origin of a bundle, as its card states it."""

    name: str
    alpha: float
    preprocess: Preparation
    training: dict[str, Any]
    data: dict[str, Any]
    losses: EpochLosses


class ExportError(RuntimeError):
    """The exported model does not reproduce torch's scores; nothing is published."""


def make_bundle(
    network: DetectorNetwork,
    upload_scorer: UploadScorer | None,
    normal: LabelledImages,
    provenance: Provenance,
    progress: Progress = SILENT,
) -> Bundle:
    """Calibrate on normal images that were not used for fitting, export to ONNX, and write the card without its metrics.

    Raises:
        CalibrationError: there are too few images for `provenance.alpha`.
        ExportError: ONNX Runtime's scores differ from torch's.
    """
    check_images(provenance.alpha, len(normal))
    scores = _equal_for_equal_images(score_images(network, normal.images), normal.images)
    calibration = Calibration.from_scores(_raise(scores))
    uploads = None
    if upload_scorer is not None:
        prepared = uploads_of(normal, _CALIBRATION_UPLOADS_SEED, progress.begin("Drawing calibration uploads", len(normal)))
        combined = upload_scorer.combine(score_images(network, prepared.images), prepared.images, prepared.features)
        groups = upload_groups(prepared.features)
        uploads = UploadCalibration.calibrated(
            upload_scorer, _raise(combined), groups, calibration, images_needed(provenance.alpha)
        )
    progress.begin("Exporting to ONNX")
    card = _first_card(network, calibration, provenance)
    if normal.features is not None or uploads is not None:
        card = card.model_copy(update={"uploads": "synthesised" if normal.features is None else "own"})
    bundle = Bundle(card, calibration, uploads, bundle_files(network, calibration, uploads))
    detector = Detector(bundle, "cpu", "onnx")
    compared = detector.detect(normal.images[:COMPARED_IMAGES]).scores
    return with_card(
        bundle,
        onnx_max_relative_difference=check_export(scores[:COMPARED_IMAGES], compared),
        self_check=_self_check(detector),
    )


def _equal_for_equal_images(scores: Floats, images: Images) -> Floats:
    """Scores [N] in which equal images [N, S, S] have that of the first of them; in other batches a last bit differs."""
    _, first, group = np.unique(images.reshape(len(images), -1), axis=0, return_index=True, return_inverse=True)
    return scores[first][group.reshape(-1)]


def _raise(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    """Scores [N], raised by _MARGIN."""
    sizes = np.abs(scores)
    raised: NDArray[np.floating] = scores + _MARGIN * np.maximum(sizes, np.median(sizes))
    return raised


def bundle_files(network: DetectorNetwork, calibration: Calibration, uploads: UploadCalibration | None) -> dict[str, bytes]:
    """The content of every file of a version, but for card and report."""
    weights = save_autoencoder(network.autoencoder)
    models: OnnxModels = export_onnx(network, hashlib.sha256(weights).hexdigest())
    scorer = {name: tensor.cpu().numpy() for name, tensor in network.scorer.tensors().items()}
    return {
        WEIGHTS: weights,
        SCORER: write_npz(scorer, calibration, uploads),
        DETECTOR_ONNX: models.detector,
        SCORES_ONNX: models.scores,
        DECODER_ONNX: models.decoder,
    }


def with_card(bundle: Bundle, **changes: Any) -> Bundle:  # noqa: ANN401 - any field of the card
    """The same bundle with these fields of its card replaced."""
    return replace(bundle, card=bundle.card.model_copy(update=changes))


def detect_all(detector: Detector, images: LabelledImages, advance: Advance = no_steps) -> Detections:
    """Detect on any number of images, in their order, a chunk at a time."""
    found = []
    for start in range(0, len(images), CHUNK):
        part = images.take(np.arange(start, min(start + CHUNK, len(images))))
        found.append(detector.detect(part.images, part.features))
        advance(len(part))
    return Detections.join(found)


def measure(bundle: Bundle, test: Detections, data_name: str) -> dict[str, Any]:
    """The card's metrics: false-alarm rates on normal test images, how exact the rate can be, and the groups of uploads."""
    return {
        "normal_test": {
            "data": data_name,
            "images": len(test.scores),
            "reconstruction_error": float(test.reconstruction_errors.mean()),
            "false_alarm_rate": {f"{rate:g}": float((test.p_values <= rate).mean()) for rate in reachable_rates(test)},
        },
        "false_alarm_rate_90_percent_interval": false_alarm_interval(bundle.calibration.n, bundle.card.alpha),
        "upload_groups": _describe_groups(bundle),
    }


def reachable_rates(detections: Detections) -> list[float]:
    """The RATES at which each of the images could be flagged: the calibration of its kind is large enough."""
    return [rate for rate in RATES if detections.calibration_sizes.min() >= images_needed(rate)]


def _describe_groups(bundle: Bundle) -> dict[str, Any]:
    """Numbers of calibration uploads and interval of the false-alarm rate, for each group of uploads by name.

    `calibration_images` are those of the calibration, which groups may share; `own_images` are those of the group.
    """
    uploads = bundle.uploads
    sizes = {group: each.n for group, each in uploads.groups.items()} if uploads else {}
    return {
        GROUPS[group]: {
            "calibration_images": n,
            "own_images": int((uploads.group_of == group).sum()) if uploads else 0,
            "false_alarm_rate_90_percent_interval": false_alarm_interval(n, bundle.card.alpha, mapped=True),
        }
        for group, n in sizes.items()
    }


def false_alarm_interval(calibration_images: int, alpha: float, *, mapped: bool = False) -> tuple[float, float]:
    """The 90 % interval of the true false-alarm rate of a conformal threshold, given the number of calibration images.

    Over draws of the calibration set the rate follows Beta(k, n + 1 - k) with k = floor(alpha (n + 1)) (Vovk, Conditional
    validity of inductive conformal predictors, 2012). Of `mapped` scores (see `QuantileMap`) the threshold is that of k or of
    k - 1, so the interval covers both.
    """
    from app.training.reporting.metrics import beta_quantile

    n, rank = calibration_images, largest_rank(alpha, calibration_images)
    lowest = rank - mapped
    return beta_quantile(0.05, lowest, n + 1 - lowest) if lowest else 0.0, beta_quantile(0.95, rank, n + 1 - rank)


def flatten(images: Images, device: torch.device) -> Tensor:
    """uint8 [N, S, S] -> float32 [N, S * S] in [-1, 1] on `device`."""
    return normalise(torch.tensor(images)).to(device)


def _first_card(network: DetectorNetwork, calibration: Calibration, provenance: Provenance) -> Card:
    config = network.autoencoder.config
    return Card(
        name=provenance.name,
        version=1,  # the store sets it
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        architecture=Architecture(
            image_size=config.image_size,
            hidden=config.hidden,
            latent_dim=config.latent_dim,
            variational=config.variational,
            parameters=sum(weight.numel() for weight in network.autoencoder.parameters()),
        ),
        preprocessing=PREPROCESSING,
        preprocess=provenance.preprocess,
        scorer=network.scorer.name,
        alpha=provenance.alpha,
        threshold=calibration.threshold(provenance.alpha),
        calibration_images=calibration.n,
        training=provenance.training,
        data=provenance.data,
        libraries={name: version(name) for name in ("torch", "onnx", "onnxruntime", "numpy", "pillow")},
        losses=provenance.losses,
        metrics={},
        self_check=SelfCheck(seed=_SELF_CHECK_SEED, scores=()),
        files={},
    )


def check_export(expected: Floats, exported: Floats) -> float:
    """The largest relative difference between torch's scores and the exported model's. Raises ExportError."""
    difference = float(np.max(np.abs(exported - expected) / np.maximum(np.abs(expected), 1e-12)))
    if not difference <= MAX_ONNX_DIFFERENCE:
        raise ExportError(
            f"The exported model's scores differ from torch's by up to {difference:.2g} of themselves, more than "
            f"{MAX_ONNX_DIFFERENCE:g}; nothing was published. Try other versions of torch, onnxscript or onnxruntime."
        )
    return difference


def _self_check(detector: Detector) -> SelfCheck:
    scores = detector.detect(self_check_images(_SELF_CHECK_SEED, detector.image_size)).scores
    return SelfCheck(seed=_SELF_CHECK_SEED, scores=tuple(float(score) for score in scores))
