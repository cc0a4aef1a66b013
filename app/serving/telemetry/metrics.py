"""Prometheus metrics: events and gauge values in, the text exposition format out.

One process keeps its numbers in memory. With several workers each keeps them in files under PROMETHEUS_MULTIPROC_DIR (the
`serve` command makes that folder), and the worker that is scraped adds them up.

Private names of prometheus_client, used in `observe_many` alone: Histogram._sum, Histogram._buckets.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

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
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 256, 1024, 4096, 16384, 65536)
_SCORES = (0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 5, 10, 30, 100)
_P_VALUES = (0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)

_BUFFER_SIZE = 512  # requests of one route and status, or batches, that are buffered before they are counted
STAGES = ("decode", "queue", "infer", "encode")


class Metrics:
    """The server's metrics; the README documents each under its name.

    What occurs for each request or batch is buffered and counted together: counting costs more than appending to a list.
    """

    def __init__(self, shared: Path | None = None) -> None:
        """`shared` is PROMETHEUS_MULTIPROC_DIR, the folder that several processes share; None for one process."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # unused `_created` series of every counter
        self._registry = registry = CollectorRegistry()
        self._shared = shared
        if shared is not None:
            _remove_dead_workers(shared)
        else:
            ProcessCollector(registry=registry)
        self._requests = Counter(
            "oddigit_requests", "Answers by route and status.", ("route", "status"), registry=registry
        )  # fmt: skip
        self._request_seconds = Histogram(
            "oddigit_request_seconds", "From head to answer.", ("route",), buckets=_SECONDS, registry=registry
        )  # fmt: skip
        self._rejections = Counter(
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
        self._model_labels: tuple[str, ...] | None = None
        self._buffered_requests: dict[tuple[str, int], list[float]] = {}  # (route, status) -> seconds
        self._buffered_stages: list[tuple[float, float, float, float]] = []
        self._buffered_rejections: dict[str, int] = {}  # reason -> count
        self._buffered_batches: list[int] = []
        self._buffered_scores: list[tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_]]] = []

    def record_request(self, route: str, status: int, seconds: float) -> None:
        """Record a response with its route template, status and duration in seconds."""
        try:
            buffered = self._buffered_requests[route, status]
        except KeyError:
            buffered = self._buffered_requests[route, status] = []
        buffered.append(seconds)
        if len(buffered) >= _BUFFER_SIZE:
            self.flush()

    def record_rejection(self, reason: str) -> None:
        """Record a request that was answered with a problem; `reason` is the problem's type."""
        self._buffered_rejections[reason] = self._buffered_rejections.get(reason, 0) + 1

    def record_stages(self, decode: float, queue: float, infer: float, encode: float) -> None:
        """Record the seconds that one request spent in each stage."""
        self._buffered_stages.append((decode, queue, infer, encode))

    def flush(self) -> None:
        """Count everything that is buffered. The server calls it once a second and before each scrape."""
        for (route, status), seconds in self._buffered_requests.items():
            if seconds:
                self._requests.labels(route, str(status)).inc(len(seconds))
                observe_many(self._request_seconds.labels(route), _SECONDS, np.array(seconds))
                seconds.clear()
        for reason, count in self._buffered_rejections.items():
            self._rejections.labels(reason).inc(count)
        self._buffered_rejections.clear()
        if self._buffered_stages:
            for name, column in zip(STAGES, np.array(self._buffered_stages).T, strict=True):
                observe_many(self._stages[name], _SECONDS, column)
            self._buffered_stages.clear()
        self._flush_batches()

    def _flush_batches(self) -> None:
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

    def record_batch(self, images: int) -> None:
        """Record a forward pass of `images` images."""
        self._buffered_batches.append(images)
        if len(self._buffered_batches) >= _BUFFER_SIZE:
            self.flush()

    def record_scores(self, scores: NDArray[np.float32], p_values: NDArray[np.float64], threshold: float) -> None:
        """Record the verdicts of N images: scores [N], p-values [N], and the model's own threshold."""
        self._buffered_scores.append((scores, p_values, scores > threshold))

    def set_model(self, name: str, version: int, scorer: str, device: str) -> None:
        """Set the model in service and count the reload."""
        if self._model_labels is not None:
            self._model.labels(*self._model_labels).set(0)
        self._model_labels = (name, str(version), scorer, device)
        self._model.labels(*self._model_labels).set(1)
        self._reloads.labels("taken_up").inc()

    def record_refused_version(self) -> None:
        """Count a version of the store that must not be served."""
        self._reloads.labels("refused").inc()

    def set_gauges(self, *, in_flight: int, queued_images: int, drift_capital: float, drifting: bool) -> None:
        """Set the gauges of the current state. The server calls it once a second and before each scrape."""
        self._in_flight.set(in_flight)
        self._queue.set(queued_images)
        self._capital.set(drift_capital)
        self._drifting.set(drifting)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format, added up over the workers."""
        self.flush()
        if self._shared is None:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def _remove_dead_workers(folder: Path) -> None:
    """Remove the live gauges of processes that no longer run: this worker may replace one that was killed."""
    names = (file.stem.rpartition("_")[2] for file in folder.glob("gauge_live*_*.db"))
    for process in {int(name) for name in names if name.isdigit()}:
        if not _is_running(process):
            with suppress(FileNotFoundError):  # another worker that starts now may have removed the file first
                mark_process_dead(process, str(folder))  # type: ignore[no-untyped-call]


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # a process of another user, or a number that is no process id
        pass
    return True


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
