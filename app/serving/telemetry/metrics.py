"""Metrics for Prometheus: what happened in, text format out. Right for one process and for several side by side.

With several workers each keeps its numbers in files under PROMETHEUS_MULTIPROC_DIR (`serve --workers` makes that folder),
and whichever worker is asked adds them up.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from app.detection.bundle import Bundle
from app.serving.telemetry.drift import Drift

if TYPE_CHECKING:
    from app.detection.detector import Detections

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 256, 1024, 4096, 16384, 65536)
_SCORES = (0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 5, 10, 30, 100)
_P_VALUES = (0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)

_TOGETHER = 64  # answers
STAGES = ("decode", "queue", "infer", "encode")


class Metrics:
    """The server's metrics, each documented in the README under its name."""

    def __init__(self, shared: Path | None = None) -> None:
        """`shared`: the folder where several processes count together, as prometheus_client was told too."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, that nothing reads
        self._registry = registry = CollectorRegistry()
        self._shared = shared
        if shared is not None:
            _forget_the_dead(shared)
        else:
            ProcessCollector(registry=registry)
        self._requests = Counter(
            "oddigit_requests", "Answers by route and status.", ("route", "status"), registry=registry
        )  # fmt: skip
        self._request_seconds = Histogram(
            "oddigit_request_seconds", "From head to answer.", ("route",), buckets=_SECONDS, registry=registry
        )  # fmt: skip
        self._refused = Counter(
            "oddigit_refused", "Requests that were refused, by problem type.", ("reason",), registry=registry
        )
        self._in_flight = Gauge(
            "oddigit_in_flight", "Questions accepted and not answered yet.", multiprocess_mode="livesum", registry=registry
        )  # fmt: skip
        self._queue = Gauge(
            "oddigit_queue_images", "Images that wait for a forward pass.", multiprocess_mode="livesum", registry=registry
        )  # fmt: skip
        self._batch = Histogram("oddigit_batch_images", "Images in one forward pass.", buckets=_BATCHES, registry=registry)
        stage = Histogram(
            "oddigit_stage_seconds", "Time in each stage of a request.", ("stage",), buckets=_SECONDS, registry=registry
        )  # fmt: skip
        self._stages = {name: stage.labels(name) for name in STAGES}
        images = Counter("oddigit_images", "Images judged, by verdict.", ("verdict",), registry=registry)
        self._normal, self._anomaly = images.labels("normal"), images.labels("anomaly")
        self._scores = Histogram("oddigit_score", "Anomaly scores.", buckets=_SCORES, registry=registry)
        self._p_values = Histogram("oddigit_p_value", "p-values.", buckets=_P_VALUES, registry=registry)
        self._model = Gauge(
            "oddigit_model_info",
            "1 for the model in service.",
            ("model", "version", "scorer", "device"),
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._reloads = Counter("oddigit_reloads", "Versions taken up or refused.", ("outcome",), registry=registry)
        self._capital = Gauge(
            "oddigit_drift_capital", "Capital of the drift martingale.", multiprocess_mode="livemax", registry=registry
        )  # fmt: skip
        self._drifting = Gauge(
            "oddigit_drifting", "1 once the capital has reached the level.", multiprocess_mode="livemax", registry=registry
        )  # fmt: skip
        self._served: tuple[str, ...] | None = None
        self._answers: dict[tuple[str, int], list[float]] = {}  # what is not counted yet: (route, status) -> seconds
        self._times: list[tuple[float, float, float, float]] = []
        self._refusals: dict[str, int] = {}  # reason -> how many

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request has been answered. Counted some at a time, since counting costs more than noting."""
        try:
            waiting = self._answers[route, status]
        except KeyError:
            waiting = self._answers[route, status] = []
        waiting.append(seconds)
        if len(waiting) >= _TOGETHER:
            self.catch_up()

    def catch_up(self) -> None:
        """Count what was noted; called often enough by the server, and before each scrape."""
        for (route, status), seconds in self._answers.items():
            if seconds:
                self._requests.labels(route, str(status)).inc(len(seconds))
                observe_many(self._request_seconds.labels(route), _SECONDS, np.array(seconds))
                seconds.clear()
        for reason, count in self._refusals.items():
            self._refused.labels(reason).inc(count)
        self._refusals.clear()
        if self._times:
            for name, column in zip(STAGES, np.array(self._times).T, strict=True):
                observe_many(self._stages[name], _SECONDS, column)
            self._times.clear()

    def refused(self, reason: str) -> None:
        """A request was not answered as it wished, for this type of problem. Counted later, as answers are."""
        self._refusals[reason] = self._refusals.get(reason, 0) + 1

    def timed(self, decode: float, queue: float, infer: float, encode: float) -> bytes:
        """Note the seconds that a question spent in each stage -> its Server-Timing header, in milliseconds."""
        self._times.append((decode, queue, infer, encode))
        return b"decode;dur=%.3f, queue;dur=%.3f, infer;dur=%.3f, encode;dur=%.3f" % (
            decode * 1e3,
            queue * 1e3,
            infer * 1e3,
            encode * 1e3,
        )

    def passed(self, images: int) -> None:
        """So many images went through the network at once."""
        self._batch.observe(images)

    def judged(self, detections: "Detections", threshold: float) -> None:
        """These images have verdicts by the model's own threshold."""
        count = len(detections.scores)
        anomalies = int((detections.scores > threshold).sum())
        self._anomaly.inc(anomalies)
        self._normal.inc(count - anomalies)
        observe_many(self._scores, _SCORES, detections.scores)
        observe_many(self._p_values, _P_VALUES, detections.p_values)

    def serves(self, bundle: Bundle, device: str) -> None:
        """This model is in service from now on."""
        if self._served is not None:
            self._model.labels(*self._served).set(0)
        self._served = (bundle.card.name, str(bundle.card.version), bundle.card.scorer, device)
        self._model.labels(*self._served).set(1)
        self._reloads.labels("taken_up").inc()

    def refused_version(self) -> None:
        self._reloads.labels("refused").inc()

    def watch(self, in_flight: int, queued: int, drift: Drift | None) -> None:
        """Set what is a state and not an event; called before each scrape."""
        self._in_flight.set(in_flight)
        self._queue.set(queued)
        if drift is not None:
            self._capital.set(drift.capital)
            self._drifting.set(drift.drifting)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        self.catch_up()
        if self._shared is None:
            return generate_latest(self._registry)
        everyone = CollectorRegistry()
        MultiProcessCollector(everyone)  # type: ignore[no-untyped-call]
        return generate_latest(everyone)


def _forget_the_dead(folder: Path) -> None:
    """Remove the gauges of workers that are no more: a new one may have taken the place of one that was killed."""
    for file in folder.glob("gauge_live*_*.db"):
        process = file.stem.rpartition("_")[2]
        if process.isdigit() and not _is_alive(int(process)):
            file.unlink(missing_ok=True)  # another new one may have been quicker


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # somebody else's, or no process's number
        pass
    return True


def observe_many(histogram: Histogram, bounds: Sequence[float], values: NDArray[np.floating]) -> None:
    """Observe all values [N] at once: one by one, an array of 1,000 images would take longer here than in the network."""
    if len(values) == 1:
        histogram.observe(float(values[0]))
        return
    counts = np.bincount(np.searchsorted(bounds, values, side="left"), minlength=len(bounds) + 1)
    histogram._sum.inc(float(values.sum(dtype=float)))
    for bucket, count in zip(histogram._buckets, counts.tolist(), strict=True):
        if count:
            bucket.inc(count)
