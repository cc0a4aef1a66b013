"""The endpoints that describe the state of the server: probes, metrics, drift, and the meaning of problem types."""

import asyncio
from dataclasses import asdict

from fastapi import APIRouter, Depends
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as METRICS_TYPE
from starlette.responses import PlainTextResponse, Response

from app.serving import schemas
from app.serving.api.openapi import API_KEY, ModelName, problems
from app.serving.api.query import refuse_unknown_parameters
from app.serving.api.responses import model_entry
from app.serving.engine.admission import Admission
from app.serving.engine.models import Models
from app.serving.errors import PROBLEMS, NotFound, Unavailable
from app.serving.http.shutdown import Draining
from app.serving.telemetry.metrics import Metrics

_SCRAPE_PAUSE = 4  # times the duration of a scrape: the shortest time until the next


class HealthEndpoints:
    """/livez, /readyz, /metrics, /drift and /problems/{type}."""

    def __init__(self, models: Models, draining: Draining, admission: Admission, metrics: Metrics) -> None:
        self._models = models
        self._draining = draining
        self._admission = admission
        self._metrics = metrics
        self._scraping = asyncio.Lock()
        self._scrape_due = 0.0  # loop time before which no further scrape begins
        self._next_scrape: asyncio.Task[bytes] | None = None  # has not begun
        self.router = router = APIRouter()
        router.get("/livez", operation_id="get_liveness", tags=["probes"])(self.livez)
        router.get("/readyz", operation_id="get_readiness", tags=["probes"], responses=problems(503))(self.readyz)
        router.get(
            "/metrics",
            operation_id="get_metrics",
            tags=["monitoring"],
            dependencies=API_KEY,
            response_class=PlainTextResponse,
            responses=problems(401),
        )(self.metrics)
        router.get(
            "/drift",
            operation_id="get_drift",
            tags=["monitoring"],
            dependencies=[*API_KEY, Depends(refuse_unknown_parameters)],
            responses=problems(401, 404, 422),
        )(self.drift)
        router.get(
            "/problems/{type}",
            operation_id="get_problem_type",
            tags=["problems"],
            response_class=PlainTextResponse,
            responses=problems(404),
        )(self.problem_type)

    async def livez(self) -> schemas.Liveness:
        """Liveness: the process runs and its event loop turns."""
        return schemas.Liveness(status="alive")

    async def readyz(self) -> schemas.Readiness:
        """Readiness: the default model is loaded and has passed its self-check, and the server is not shutting down."""
        if self._draining.on:
            raise Unavailable("The server is shutting down.", {"retry-after": "1"})
        detector = self._models.default.inference.detector
        return schemas.Readiness(
            status="ready",
            model=schemas.Model(**model_entry(detector.bundle)),
            device=str(detector.device),
            refused_versions=[
                schemas.RefusedVersion(model=model, version=number, reason=reason)
                for model, number, reason in self._models.refused_versions
            ],
        )

    async def metrics(self) -> Response:
        """Metrics in Prometheus's text format."""
        if self._next_scrape is None:
            self._next_scrape = asyncio.create_task(self._scrape())
        return Response(await asyncio.shield(self._next_scrape), media_type=METRICS_TYPE)

    async def _scrape(self) -> bytes:
        """The text for all requests that wait when it begins. Scrapes together take at most a fifth of the time.

        While a thread computes, the event loop waits for the interpreter's lock again and again.
        """
        clock = asyncio.get_running_loop().time
        async with self._scraping:
            await asyncio.sleep(max(0.0, self._scrape_due - clock()))
            self._next_scrape = None
            await self.update_metrics()
            began = clock()
            text = await asyncio.to_thread(self._metrics.text)
            self._scrape_due = clock() + _SCRAPE_PAUSE * (clock() - began)
        return text

    async def drift(self, model: ModelName = None) -> schemas.Drift:
        """Evidence that the traffic differs from the images that the model was calibrated on."""
        found = self._models.find(model)
        state = await found.monitor.drift()
        entry = schemas.Model(**model_entry(found.inference.detector.bundle))
        return schemas.Drift(model=entry, **asdict(state))

    async def problem_type(self, type: str) -> PlainTextResponse:
        """The meaning of a problem type."""
        for problem in PROBLEMS:
            if problem.type == type:
                return PlainTextResponse(f"{problem.title} ({problem.status})\n\n{problem.__doc__}\n")
        raise NotFound(f"There is no such problem type; there are: {', '.join(problem.type for problem in PROBLEMS)}.")

    async def update_metrics(self) -> None:
        """Bring the drift monitors, the gauges of the current state and the buffered counts up to date."""
        self._metrics.set_in_flight(self._admission.in_flight)
        for model in self._models:
            await model.update_metrics()
        self._metrics.flush()
