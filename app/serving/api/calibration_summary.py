"""Summary of a bundle's calibration scores: a histogram, and thresholds at common false-alarm rates."""

import numpy as np
from pydantic import Field

from app.detection.bundle import Bundle
from app.detection.conformal import images_needed
from app.serving.api.responses import model_entry
from app.serving.schemas import Finite, Model, ResponsePart

_BINS = 60
_WIDEST = 0.999  # quantile of the scores at which the last bin begins
_RATES = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


class Rate(ResponsePart):
    """A false-alarm rate and the score above which an image is an anomaly at that rate."""

    alpha: float = Field(gt=0, lt=1)
    threshold: Finite


class CalibrationSummary(ResponsePart):
    """Response of /model/calibration: the scores of the normal images that thresholds and p-values are from."""

    model: Model
    images: int = Field(ge=1, description="Number of calibration images.")
    edges: list[Finite] = Field(description="Lower edges of the histogram's bins; the last bin has no upper edge.")
    counts: list[int] = Field(description="Calibration images in each bin.")
    rates: list[Rate] = Field(description="Thresholds at common false-alarm rates, ascending by alpha.")


def summarise_calibration(bundle: Bundle) -> CalibrationSummary:
    """The summary of the bundle's calibration; it has only the rates that the calibration has enough images for."""
    calibration, card = bundle.calibration, bundle.card
    edges = np.linspace(calibration.scores[0], np.quantile(calibration.scores, _WIDEST), _BINS)
    bins = np.searchsorted(edges, calibration.scores, side="right") - 1
    rates = [alpha for alpha in sorted({*_RATES, card.alpha}) if images_needed(alpha) <= calibration.n]
    return CalibrationSummary(
        model=Model(**model_entry(bundle)),
        images=calibration.n,
        edges=edges.tolist(),
        counts=np.bincount(np.maximum(bins, 0), minlength=_BINS).tolist(),
        rates=[Rate(alpha=alpha, threshold=calibration.threshold(alpha)) for alpha in rates],
    )
