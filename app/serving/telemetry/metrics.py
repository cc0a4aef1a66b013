"""Prometheus metrics: events and gauge values in, the text exposition format out.

One process keeps its numbers in memory. With several workers each keeps them in files under PROMETHEUS_MULTIPROC_DIR (the
`serve` command makes that folder), and the worker that is scraped adds them up.
"""

from pathlib import Path

import numpy as np
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

from app.serving.telemetry.model_metrics import BUFFER_SIZE, ModelFamilies, ModelMetrics, observe_many
from app.serving.telemetry.shared_values import keep_metrics_on_full_disk
from app.serving.telemetry.worker_processes import WorkerProcesses, remove_dead_workers

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
STAGES = ("decode", "queue", "infer", "encode")


class Metrics:
    """The server's metrics; docs/operating.md documents each under its name.

    What occurs for each request or batch is buffered and counted together: counting costs more than appending to a list.
    """

    def __init__(self, shared: Path | None = None) -> None:
        """`shared` is PROMETHEUS_MULTIPROC_DIR, the folder that several processes share; None for one process."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # unused `_created` series of every counter
        self._registry = registry = CollectorRegistry()
        self._shared = shared
        keep_metrics_on_full_disk()
        if shared is not None:
            remove_dead_workers(shared)
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
        stage = Histogram(
            "oddigit_stage_seconds", "Time in each stage of a request.", ("stage",), buckets=_SECONDS, registry=registry
        )  # fmt: skip
        self._stages = {name: stage.labels(name) for name in STAGES}
        self._stopped_decoders = Counter(
            "oddigit_stopped_decoders",
            "Decoder processes that ended while they decoded an image.",
            ("reason",),
            registry=registry,
        )
        for reason in ("cpu-limit", "killed", "crash"):  # a series that is absent until the first event has no rate
            self._stopped_decoders.labels(reason)
        worker_deaths(registry)  # counted by the process that starts the workers
        self._families = ModelFamilies(registry)
        self._models: dict[str, ModelMetrics] = {}
        self._buffered_requests: dict[tuple[str, int], list[float]] = {}  # (route, status) -> seconds
        self._buffered_stages: list[tuple[float, float, float, float]] = []
        self._buffered_rejections: dict[str, int] = {}  # reason -> count

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
        if len(buffered) >= BUFFER_SIZE:
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
        for model in self._models.values():
            model.flush()

    def record_stopped_decoder(self, reason: str) -> None:
        """Record a decoder process that ended while it decoded an image: "cpu-limit", "killed" or "crash"."""
        self._stopped_decoders.labels(reason).inc()

    def set_in_flight(self, requests: int) -> None:
        """Set the number of requests in progress. The server calls it once a second and before each scrape."""
        self._in_flight.set(requests)

    def text(self) -> bytes:
        """All that is counted, in Prometheus's text format, added up over the workers. Takes 10 ms; can run on any thread."""
        if self._shared is None:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        registry.register(WorkerProcesses(self._shared))
        return generate_latest(registry)


def worker_deaths(registry: CollectorRegistry) -> Counter:
    """The counter of workers that died, which the process that starts them increments."""
    keep_metrics_on_full_disk()
    return Counter("oddigit_worker_deaths", "Worker processes that ended unexpectedly and were replaced.", registry=registry)
