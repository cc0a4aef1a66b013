"""What the server makes of its own verdicts: metrics, and bets on drift."""

import numpy as np

from app.detection.bundle import Bundle
from app.detection.detector import Detections
from app.serving.telemetry.drift import Drift, DriftMonitor
from app.serving.telemetry.metrics import Metrics


class Monitor:
    """Told of every forward pass: counts it, and bets on the p-values of what it judged for drift.

    Images that come together are bet on in a random order: in an array sorted by writers or by classes neighbours are
    alike, which is no drift.
    """

    def __init__(self, metrics: Metrics, level: float) -> None:
        self._metrics = metrics
        self._level = level
        self._bundle: Bundle | None = None  # in service
        self._drift = DriftMonitor(1, level)
        self._random = np.random.default_rng()

    def begin(self, bundle: Bundle) -> None:
        """A new version: its p-values are a new stream."""
        self._bundle, self._drift = bundle, DriftMonitor(bundle.calibration.n, self._level)

    def __call__(self, bundle: Bundle, images: int, judged: Detections | None) -> None:
        self._metrics.passed(images)
        if judged is None:
            return
        self._metrics.judged(judged, bundle.card.threshold)
        if bundle is self._bundle:  # not an array that an old version was still busy with
            one = len(judged.p_values) == 1
            self._drift.observe(judged.p_values if one else self._random.permutation(judged.p_values))

    def drift(self) -> Drift:
        return self._drift.state()
