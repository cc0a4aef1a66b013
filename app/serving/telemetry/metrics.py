"""Prometheus metrics: events and gauge values in, the text exposition format out.

One process keeps its numbers in memory. With several workers each keeps them in files under PROMETHEUS_MULTIPROC_DIR (the
`serve` command makes that folder), and the worker that is scraped adds them up.

Private names of prometheus_client, used in `observe_many` alone: Histogram._sum, Histogram._buckets.
"""

import os
from collections.abc import Sequence
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

from app.serving.telemetry.shared_values import keep_metrics_on_full_disk
from app.serving.telemetry.worker_processes import WorkerProcesses, remove_dead_workers

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_STAGES = ("decode", "queue", "infer", "encode")
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 256, 1024, 4096, 16384, 65536)
_SCORES = (0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 5, 10, 30, 100)
_P_VALUES = (0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)

OTHER = "other"  # label of all requests without a route, so that clients cannot create time series at will
_BUFFER_SIZE = 512  # requests of one route and status that are buffered before everything is counted
_rejections: dict[tuple[str, int | None], int] = {}  # (reason, status) -> requests


def record_rejection(reason: str, status: int | None = None) -> None:
    """Record a request that was answered with a problem; `reason` is the problem's type. The next `flush` counts it.

    `status` is that of a response by the connection itself, to a request that no application sees and counts.
    """
    _rejections[reason, status] = _rejections.get((reason, status), 0) + 1


class _ModelFamilies:
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
        verdicts = "Images with a verdict, by verdict at the model's own alpha."
        self.images = Counter("oddigit_images", verdicts, ("model", "verdict"), registry=registry)
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
    """The metrics of one model, whose name is their label `model`."""

    def __init__(self, families: _ModelFamilies, model: str) -> None:
        self._model = model
        self._info, self._reloads = families.info, families.reloads
        self._normal, self._anomaly = families.images.labels(model, "normal"), families.images.labels(model, "anomaly")
        self._queue, self._batch = families.queue.labels(model), families.batch.labels(model)
        self._scores, self._p_values = families.scores.labels(model), families.p_values.labels(model)
        self._capital, self._drifting = families.capital.labels(model), families.drifting.labels(model)
        self._labels: tuple[str, ...] | None = None  # of the version in service

    def record_batches(self, images: Sequence[int]) -> None:
        """Record forward passes, by their numbers of images."""
        if images:
            observe_many(self._batch, _BATCHES, np.array(images))

    def record_scores(self, scores: NDArray[np.float32], p_values: NDArray[np.float64], anomalies: int) -> None:
        """Record N images: scores [N], p-values [N], and the number of anomalies at the model's own alpha."""
        self._anomaly.inc(anomalies)
        self._normal.inc(len(scores) - anomalies)
        observe_many(self._scores, _SCORES, scores)
        observe_many(self._p_values, _P_VALUES, p_values)

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


class Metrics:
    """The server's metrics; docs/operating.md documents each under its name.

    What occurs for each request is buffered and counted together: counting costs more than appending to a list.
    """

    def __init__(self, shared: Path | None = None) -> None:
        """`shared` is PROMETHEUS_MULTIPROC_DIR, the folder that several processes share; None for one process."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # unused `_created` series
        self._registry = registry = CollectorRegistry()
        self._shared = shared
        keep_metrics_on_full_disk()
        if shared is not None:
            remove_dead_workers(shared)
        else:
            ProcessCollector(registry=registry)
        self._requests = Counter(
            "oddigit_requests", "Responses by route and status.", ("route", "status"), registry=registry
        )  # fmt: skip
        self._request_seconds = Histogram(
            "oddigit_request_seconds", "Seconds from the head of a request to its response.", ("route",),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._rejections = Counter(
            "oddigit_refused", "Requests that were answered with a problem, by its type.", ("reason",), registry=registry
        )
        self._in_flight = Gauge(
            "oddigit_in_flight", "Requests in progress.", multiprocess_mode="livesum", registry=registry
        )  # fmt: skip
        stage = Histogram(
            "oddigit_stage_seconds", "Time in each stage of a request.", ("stage",), buckets=_SECONDS, registry=registry
        )  # fmt: skip
        self._stages = {name: stage.labels(name) for name in _STAGES}
        self._stopped_decoders = Counter(
            "oddigit_stopped_decoders",
            "Decoder processes that ended while they decoded an image.",
            ("reason",),
            registry=registry,
        )
        for reason in ("cpu-limit", "killed", "crash"):  # a series that is absent until the first event has no rate
            self._stopped_decoders.labels(reason)
        worker_deaths(registry)  # counted by the process that starts the workers
        self._families = _ModelFamilies(registry)
        self._models: dict[str, ModelMetrics] = {}
        self._buffered_requests: dict[tuple[str, int], list[float]] = {}  # (route, status) -> seconds
        self._buffered_stages: list[tuple[float, float, float, float]] = []

    def for_model(self, name: str) -> ModelMetrics:
        """The metrics of the model `name`."""
        if name not in self._models:
            self._models[name] = ModelMetrics(self._families, name)
        return self._models[name]

    def record_request(self, route: str, status: int, seconds: float) -> None:
        """Record a response with its route template, status and duration in seconds."""
        try:
            buffered = self._buffered_requests[route, status]
        except KeyError:
            buffered = self._buffered_requests[route, status] = []
        buffered.append(seconds)
        if len(buffered) >= _BUFFER_SIZE:
            self.flush()

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
        while _rejections:
            (reason, code), count = _rejections.popitem()
            self._rejections.labels(reason).inc(count)
            if code is not None:
                self._requests.labels(OTHER, str(code)).inc(count)
        if self._buffered_stages:
            for name, column in zip(_STAGES, np.array(self._buffered_stages).T, strict=True):
                observe_many(self._stages[name], _SECONDS, column)
            self._buffered_stages.clear()

    def close(self) -> None:
        """Count what is buffered, and remove the gauges of this process, which ends."""
        self.flush()
        if self._shared is not None:
            mark_process_dead(os.getpid(), str(self._shared))  # type: ignore[no-untyped-call]

    def record_stopped_decoder(self, reason: str) -> None:
        """Record a decoder process that ended while it decoded an image: "cpu-limit", "killed" or "crash"."""
        self._stopped_decoders.labels(reason).inc()

    def set_in_flight(self, requests: int) -> None:
        """Set the number of requests in progress. The server calls it once a second and before each scrape."""
        self._in_flight.set(requests)

    def text(self) -> bytes:
        """All that is counted, in Prometheus's text format, added up over the workers. Takes 10 ms; can run on any thread."""
        if self._shared is None or not self._shared.is_dir():  # where the folder was removed, this worker's numbers are left
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        registry.register(WorkerProcesses(self._shared))
        return generate_latest(registry)


def worker_deaths(registry: CollectorRegistry) -> Counter:
    """The counter of workers that died, which the process that starts them increments."""
    keep_metrics_on_full_disk()
    return Counter("oddigit_worker_deaths", "Worker processes that ended unexpectedly and were replaced.", registry=registry)


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
