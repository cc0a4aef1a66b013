"""The metrics of each model in service, with its name as the label `model`.

Private names of prometheus_client, used in `observe_many` alone: Histogram._sum, Histogram._buckets.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 256, 1024, 4096, 16384, 65536)
_SCORES = (0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 5, 10, 30, 100)
_P_VALUES = (0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)

BUFFER_SIZE = 512  # events of one kind that are buffered before they are counted


class ModelFamilies:
    """The metric families that have the label `model`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        model = ("model",)
        self.queue = Gauge(
            "oddigit_queue_images", "Images that wait for a forward pass.", model,
            multiprocess_mode="livesum", registry=registry,
        )  # fmt: skip
        self.batch = Histogram(
            "oddigit_batch_images", "Images in one forward pass.", model, buckets=_BATCHES, registry=registry
        )
        self.images = Counter("oddigit_images", "Images judged, by verdict.", ("model", "verdict"), registry=registry)
        self.scores = Histogram("oddigit_score", "Anomaly scores.", model, buckets=_SCORES, registry=registry)
        self.p_values = Histogram("oddigit_p_value", "p-values.", model, buckets=_P_VALUES, registry=registry)
        self.info = Gauge(
            "oddigit_model_info", "1 for each model in service.", ("model", "version", "scorer", "device"),
            multiprocess_mode="livemax", registry=registry,
        )  # fmt: skip
        self.reloads = Counter("oddigit_reloads", "Versions taken up or refused.", ("model", "outcome"), registry=registry)
        self.capital = Gauge(
            "oddigit_drift_capital", "Capital of the drift martingale.", model,
            multiprocess_mode="livemax", registry=registry,
        )  # fmt: skip
        self.drifting = Gauge(
            "oddigit_drifting", "1 once the capital has reached the level.", model,
            multiprocess_mode="livemax", registry=registry,
        )  # fmt: skip


class ModelMetrics:
    """The metrics of one model. Batches and scores are buffered and counted together, as in Metrics."""

    def __init__(self, families: ModelFamilies, model: str) -> None:
        self._model = model
        self._info, self._reloads = families.info, families.reloads
        self._normal, self._anomaly = families.images.labels(model, "normal"), families.images.labels(model, "anomaly")
        self._queue, self._batch = families.queue.labels(model), families.batch.labels(model)
        self._scores, self._p_values = families.scores.labels(model), families.p_values.labels(model)
        self._capital, self._drifting = families.capital.labels(model), families.drifting.labels(model)
        self._labels: tuple[str, ...] | None = None  # of the version in service
        self._buffered_batches: list[int] = []
        self._buffered_scores: list[tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_]]] = []

    def record_batch(self, images: int) -> None:
        """Record a forward pass of `images` images."""
        self._buffered_batches.append(images)
        if len(self._buffered_batches) >= BUFFER_SIZE:
            self.flush()

    def record_scores(self, scores: NDArray[np.float32], p_values: NDArray[np.float64], threshold: float) -> None:
        """Record the verdicts of N images: scores [N], p-values [N], and the model's own threshold."""
        self._buffered_scores.append((scores, p_values, scores > threshold))

    def set_version(self, version: int, scorer: str, device: str) -> None:
        """Set the version in service and count the reload."""
        if self._labels is not None:
            self._info.labels(*self._labels).set(0)
        self._labels = (self._model, str(version), scorer, device)
        self._info.labels(*self._labels).set(1)
        self._reloads.labels(self._model, "taken_up").inc()

    def record_refused_version(self) -> None:
        """Count a version of the store that must not be served."""
        self._reloads.labels(self._model, "refused").inc()

    def set_gauges(self, *, queued_images: int, drift_capital: float, drifting: bool) -> None:
        """Set the gauges of the current state. The server calls it once a second and before each scrape."""
        self._queue.set(queued_images)
        self._capital.set(drift_capital)
        self._drifting.set(drifting)

    def flush(self) -> None:
        """Count what is buffered."""
        if self._buffered_batches:
            observe_many(self._batch, _BATCHES, np.array(self._buffered_batches))
            self._buffered_batches.clear()
        if self._buffered_scores:
            scores, p_values, anomalies = (np.concatenate(column) for column in zip(*self._buffered_scores, strict=True))
            self._buffered_scores.clear()
            anomaly_count = int(anomalies.sum())
            self._anomaly.inc(anomaly_count)
            self._normal.inc(len(scores) - anomaly_count)
            observe_many(self._scores, _SCORES, scores)
            observe_many(self._p_values, _P_VALUES, p_values)


def observe_many(histogram: Histogram, bounds: Sequence[float], values: NDArray[np.floating] | NDArray[np.integer]) -> None:
    """Observe all values [N] at once. `bounds` are the histogram's buckets without +Inf.

    Observing 1,000 values one by one takes longer than their forward pass.
    """
    if len(values) == 1:
        histogram.observe(float(values[0]))
        return
    counts = np.bincount(np.searchsorted(bounds, values, side="left"), minlength=len(bounds) + 1)
    histogram._sum.inc(float(values.sum(dtype=float)))
    for bucket, count in zip(histogram._buckets, counts.tolist(), strict=True):
        if count:
            bucket.inc(count)
