"""A trained network and normal images in, a calibrated `Bundle` out. Training, adopting and re-calibrating all end here.

Images are uint8 [N, S, S]. Nothing here changes the weights, reads a data set or writes a file.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.detection.bundle import PREPROCESSING, Architecture, Bundle, Card, EpochLosses, SelfCheck, self_check_images
from app.detection.conformal import Calibration, CalibrationError, images_needed
from app.detection.detector import Detections, Detector
from app.detection.imaging.decode import normalise
from app.detection.upload_scorer import QuantileMap, UploadScorer
from app.network.arrays import place, to_numpy
from app.network.autoencoder import Autoencoder, Layers
from app.network.scoring import MseScorer, Scorer
from app.training.datasets import LabelledImages
from app.training.scorer_fitting import SCORERS, fit_scorer
from app.training.synthetic.uploads import Uploads, synthesise_uploads

Pixels = NDArray[np.uint8]

CHUNK = 8192  # images at once: 25 MB of float32 pixels
RATES = (0.001, 0.01, 0.05, 0.1)  # false-alarm rates that are reported
EVIDENCE_IMAGES = 5_000  # what a preparation sees has a dozen statistics; more images tell no more of them
_SELF_CHECK_SEED = 28
_CALIBRATION_UPLOADS_SEED = 1_000_003  # other pens and papers than those that the evidence was learnt from


@dataclass(frozen=True)
class Provenance:
    """What a card says of where its bundle came from."""

    name: str
    alpha: float
    training: dict[str, Any]
    data: dict[str, Any]
    losses: EpochLosses


def check_calibration_size(alpha: float, images: int) -> None:
    """Find out before any work whether a threshold at `alpha` will exist.

    Raises:
        CalibrationError: there are too few calibration images for it.
    """
    if images < images_needed(alpha):
        raise CalibrationError(
            f"alpha {alpha:g} needs at least {images_needed(alpha):,} calibration images, but there are {images:,}. "
            "Ask for a larger alpha or give more images."
        )


class UnknownScorer(ValueError):
    """No scorer has the name asked for; the message says which there are."""


def check_scorer(name: str) -> None:
    """Find out before any work whether there is a scorer of this name.

    Raises:
        UnknownScorer: there is none.
    """
    if name not in SCORERS:
        raise UnknownScorer(f"There is no scorer named {name!r}; choose one of: {', '.join(SCORERS)}.")


def fit_image_scorer(name: str, model: Autoencoder, images: Pixels, device: torch.device, seed: int) -> Scorer:
    """Fit the scorer called `name` on the images that the network was trained on."""
    return fit_scorer(name, model.to(device), flatten(images, device), seed=seed)


def fit_upload_scorer(
    model: Autoencoder, scorer: Scorer, normal: LabelledImages, device: torch.device, seed: int
) -> UploadScorer | None:
    """What the preparation of normal uploads sees; None for the plain error, which is compared as the tutorial defines it."""
    if scorer.name == MseScorer.name:
        return None
    uploads = _uploads_of(normal.take(np.arange(min(len(normal), EVIDENCE_IMAGES))), seed)
    return UploadScorer.fit(_scores(model, scorer, uploads.images, device), uploads.features)


def make_bundle(
    model: Autoencoder,
    scorer: Scorer,
    features: UploadScorer | None,
    normal: LabelledImages,
    origin: Provenance,
    device: torch.device,
) -> Bundle:
    """Calibrate on normal images that nothing here was learnt from, and write the card but for its metrics.

    Raises:
        CalibrationError: there are too few images for `origin.alpha`.
    """
    check_calibration_size(origin.alpha, len(normal))
    calibration = Calibration.from_scores(_scores(model, scorer, normalise(normal.images), device))
    scale = None
    if features is not None:
        uploads = _uploads_of(normal, _CALIBRATION_UPLOADS_SEED)
        combined = features.combine(_scores(model, scorer, uploads.images, device), uploads.features)
        scale = QuantileMap.calibrated(features, combined, calibration)
    card = _first_card(model, scorer, calibration, origin)
    if scale is not None:
        card = card.model_copy(update={"uploads": "synthesised" if normal.features is None else "own"})
    bundle = Bundle(model, scorer, calibration, card, scale)
    return with_card(bundle, self_check=_self_check(Detector(bundle, str(device))))


def with_card(bundle: Bundle, **changes: Any) -> Bundle:  # noqa: ANN401 - any field of the card
    """The same bundle with these fields of its card replaced."""
    return replace(bundle, card=bundle.card.model_copy(update=changes))


def detect_all(detector: Detector, images: LabelledImages) -> Detections:
    """Judge any number of images, in their order, a chunk at a time."""
    parts = [images.take(np.arange(start, min(start + CHUNK, len(images)))) for start in range(0, len(images), CHUNK)]
    return Detections.join([detector.detect(normalise(part.images), part.features) for part in parts])


def measure(bundle: Bundle, test: Detections, data_name: str, fitted: Detections | None = None) -> dict[str, Any]:
    """The card's metrics: how the bundle does on normal test images, and how exact its false-alarm rate can be.

    `fitted` are the images that were learnt from: their plain quantile is the threshold as it is commonly set, and too low.
    """
    known = [rate for rate in RATES if bundle.calibration.n >= images_needed(rate)]
    return {
        "normal_test": {
            "data": data_name,
            "images": len(test.scores),
            "reconstruction_error": float(test.reconstruction_errors.mean()),
            "false_alarm_rate": {f"{rate:g}": float((test.p_values <= rate).mean()) for rate in known},
        },
        "false_alarm_rate_90_percent_interval": false_alarm_interval(bundle.calibration.n, bundle.card.alpha),
        "plain_quantile_of_fitted_images": float(np.quantile(fitted.scores, 1 - bundle.card.alpha)) if fitted else None,
    }


def false_alarm_interval(calibration_images: int, alpha: float, confidence: float = 0.9) -> tuple[float, float]:
    """Where the true false-alarm rate of a conformal threshold lies, given how many images it was calibrated on.

    Over draws of the calibration set the rate follows Beta(k, n + 1 - k) with k = floor(alpha (n + 1)) (Vovk, Conditional
    validity of inductive conformal predictors, 2012).
    """
    from app.training.reporting.metrics import beta_quantile

    rank = int(alpha * (calibration_images + 1) + 1e-9)
    tail = (1 - confidence) / 2
    low, high = (beta_quantile(q, rank, calibration_images + 1 - rank) for q in (tail, 1 - tail))
    return low, high


def _uploads_of(images: LabelledImages, seed: int) -> Uploads:
    """The images as uploads: they are some already, or they are redrawn as such."""
    if images.features is not None:
        return Uploads(normalise(images.images), images.features)
    return synthesise_uploads(images.images, seed=seed)


def _scores(model: Autoencoder, scorer: Scorer, images: NDArray[np.float32], device: torch.device) -> NDArray[np.float32]:
    """Scores [N] of images [N, 1, S, S] in [-1, 1]."""
    layers, scorer = Layers(model, device), scorer.to(device)
    parts = []
    for start in range(0, len(images), CHUNK):
        flat = place(images[start : start + CHUNK].reshape(-1, model.config.pixels), device)
        embeddings = layers.encode(flat)
        parts.append(to_numpy(scorer.score(flat, layers.decode(embeddings), embeddings)))
    return np.concatenate(parts)


def flatten(images: Pixels, device: torch.device) -> Tensor:
    """uint8 [N, S, S] -> float32 [N, S * S] in [-1, 1] on `device`."""
    return torch.from_numpy(normalise(images)).view(len(images), -1).to(device)


def _first_card(model: Autoencoder, scorer: Scorer, calibration: Calibration, origin: Provenance) -> Card:
    return Card(
        name=origin.name,
        version=1,  # the store sets it
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        architecture=Architecture.of(model),
        preprocessing=PREPROCESSING,
        scorer=scorer.name,
        alpha=origin.alpha,
        threshold=calibration.threshold(origin.alpha),
        calibration_images=calibration.n,
        training=origin.training,
        data=origin.data,
        libraries={name: version(name) for name in ("torch", "numpy", "pillow")},
        losses=origin.losses,
        metrics={},
        self_check=SelfCheck(seed=_SELF_CHECK_SEED, scores=()),
        files={},
    )


def _self_check(detector: Detector) -> SelfCheck:
    size = detector.bundle.model.config.image_size
    scores = detector.detect(normalise(self_check_images(_SELF_CHECK_SEED, size))).scores
    return SelfCheck(seed=_SELF_CHECK_SEED, scores=tuple(float(score) for score in scores))
