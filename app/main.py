"""Wires the server together: settings in, an ASGI application out. `uvicorn app.main:app` works."""

import asyncio
import itertools
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app.detection import store
from app.detection.detector import Detector
from app.detection.imaging.upload_features import FEATURE_NAMES
from app.detection.runtimes import choose_device
from app.serving.api.demo_page import add_page
from app.serving.api.health import HealthEndpoints
from app.serving.api.model_info import ModelInfoEndpoints
from app.serving.api.open_inference import OpenInference
from app.serving.api.predict import Endpoints
from app.serving.api.routes import add_routes
from app.serving.api.uploads import Uploads
from app.serving.engine.admission import Admission
from app.serving.engine.decoders import Decoders
from app.serving.engine.memory import collect_garbage, no_automatic_garbage_collection, return_free_memory, use_one_heap
from app.serving.engine.models import Model, Models
from app.serving.engine.reload import Versions
from app.serving.engine.thread_stage import Stages, ThreadStage
from app.serving.http.access_log import AccessLog
from app.serving.http.auth import ApiKeyAuth, read_keys
from app.serving.http.body import ByteBudget, RequestLimits
from app.serving.http.middleware import RequestMiddleware
from app.serving.http.problem_responses import ProblemResponses
from app.serving.http.shutdown import Draining
from app.serving.settings import Settings, entries, missing_in_store, read_settings, unknown_variables
from app.serving.telemetry.log_setup import set_up_logging
from app.serving.telemetry.metrics import Metrics
from app.serving.telemetry.tracing import with_tracing

logger = logging.getLogger(__name__)

VERSION = version("oddigit")

_TRIM_INTERVAL_S = 5
_SWITCH_INTERVAL_S = 0.0005  # for which a thread keeps the interpreter while the event loop waits; Python's default is 5 ms
_CLOSING_S = 2.0  # of work that is left when the drain ends: after it, images that are still being decoded are refused

_DOCUMENT: dict[str, Any] = {
    "title": "Oddigit",
    "description": "Tells images of single digits from other images, with a false-alarm rate that you choose.",
    "version": VERSION,
    "redirect_slashes": False,
    "docs_url": None,  # the API page is our own
    "redoc_url": None,
    "openapi_url": None,  # openapi.py answers it, rendered once
}


class _Engine:
    """The parts of a server that work outside of requests: its models, its metrics, and their start and end."""

    def __init__(self, settings: Settings) -> None:
        shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self.settings = settings
        self.metrics = Metrics(Path(shared) if shared else None)
        deadline_s = settings.deadline_ms / 1000
        self.stages = Stages(
            arrays=ThreadStage("arrays", deadline_s=deadline_s),
            pictures=ThreadStage("pictures", deadline_s=deadline_s),
        )
        self.models = Models(settings.model, self._make_model, partial(_other_names, settings))
        self.admission = Admission(settings.max_waiting)
        self.decoders = Decoders(
            processes=settings.decoders,
            max_pixels=settings.max_pixels,
            deadline_s=deadline_s,
            on_stopped=self.metrics.record_stopped_decoder,
        )
        self.uploads = Uploads(settings, self.decoders, self.stages)
        self.draining = Draining(on_close=partial(self.decoders.finish_within, _CLOSING_S))
        self.health = HealthEndpoints(self.models, self.draining, self.admission, self.metrics)
        self.access_log = AccessLog(as_json=settings.log_format == "json") if settings.access_log else None

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Load the models and start the background tasks; stop them at the end."""
        use_one_heap()
        await self.models.load()
        await self.decoders.start()
        self.draining.begin_on_sigterm(self.settings.drain_s)
        tasks = [asyncio.create_task(self._work_each_second())]
        if self.settings.reload:
            tasks.append(asyncio.create_task(self.models.watch()))
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        with no_automatic_garbage_collection():
            return_free_memory()  # that loading took
            yield
        for task in tasks:
            task.cancel()
        await asyncio.to_thread(self.decoders.close)
        self.stages.close()
        for model in self.models:
            model.monitor.flush()
        self.metrics.close()
        if self.access_log is not None:
            self.access_log.flush()

    def _make_model(self, name: str) -> Model:
        settings = self.settings
        return Model(
            _versions(settings, name),
            self.metrics.for_model(name),
            max_batch_size=settings.max_batch_size,
            arrays=self.stages.arrays,
            drift_level=settings.drift_level,
        )

    async def _work_each_second(self) -> None:
        """Count buffered metrics, so that a scrape of another worker finds them; free memory at times.

        A worker stops when its supervisor was killed: it would keep the port, and nothing would restart or stop it.
        """
        supervisor = multiprocessing.parent_process()
        for second in itertools.count(1):
            await asyncio.sleep(1)
            if supervisor is not None and not supervisor.is_alive():
                logger.error("the process that started this worker has ended; the worker stops")
                signal.raise_signal(signal.SIGTERM)
                supervisor = None
            if any(model.inference.detector.is_lost for model in self.models):
                logger.critical("the device has failed, and this process cannot use it any more: it ends")
                os._exit(1)  # the supervisor or the service manager starts another process
            if self.decoders.is_lost:  # for instance because the folder of temporary files was deleted
                logger.critical("decoder processes cannot be started any more: the process ends")
                os._exit(1)
            try:
                await self.health.update_metrics()
                collect_garbage(len(asyncio.all_tasks()))
                if second % _TRIM_INTERVAL_S == 0:
                    await asyncio.to_thread(return_free_memory)
            except Exception:  # for instance no thread can be started: it is tried again
                logger.exception("the work of each second failed")


def create_app(settings: Settings) -> ASGIApp:
    """The server for `settings`. The models are loaded and checked when the server starts.

    Raises:
        KeysError: the API keys cannot be used.
    """
    auth = ApiKeyAuth(_read_keys(settings))
    engine = _Engine(settings)
    models, admission, metrics = engine.models, engine.admission, engine.metrics
    endpoints = Endpoints(models, engine.uploads, admission, engine.stages, metrics, settings)
    model_info = ModelInfoEndpoints(models, engine.stages.pictures, settings)
    open_inference = OpenInference(models, engine.uploads, admission, engine.stages, engine.draining, metrics, settings)
    app = FastAPI(lifespan=engine.lifespan, **_DOCUMENT)
    problem_responses = ProblemResponses(settings.deadline_ms)
    problem_responses.add_to(app)
    add_routes(app, endpoints, model_info, engine.health, open_inference, key_optional=auth.disabled)
    add_page(app)
    middleware = RequestMiddleware(
        app,
        fast_endpoints=endpoints.by_path,
        auth=auth,
        limits=RequestLimits(
            ByteBudget(settings.max_bodies_bytes), ByteBudget(settings.max_answers_bytes), settings.body_timeout_s
        ),
        metrics=metrics,
        problem_responses=problem_responses,
        draining=engine.draining,
        access_log=engine.access_log,
        root_path=settings.root_path,
    )
    routers = (app, model_info.router, engine.health.router, open_inference.router)  # FastAPI keeps included routers apart
    paths = {getattr(route, "path", "") for router in routers for route in router.routes}
    problem_responses.paths = sorted(paths)
    return _with_optional_middleware(middleware, paths, settings)


def _with_optional_middleware(app: ASGIApp, paths: set[str], settings: Settings) -> ASGIApp:
    """`app` in the middleware that the settings and OpenTelemetry's variables ask for."""
    if settings.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=entries(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[
                "X-Request-ID",
                "Server-Timing",
                "Retry-After",
                "Oddigit-Result",
                "Inference-Header-Content-Length",
            ],
        )
    app = with_tracing(app, paths, settings.root_path, os.environ)
    if settings.trusted_proxies:
        app = cast(ASGIApp, ProxyHeadersMiddleware(cast(Any, app), trusted_hosts=settings.trusted_proxies))
    return app


def load_detector(folder: Path, settings: Settings) -> Detector:
    """A version of the store, verified, self-checked and warmed up.

    Raises:
        StoreError, SelfCheckError: the version must not be served; the message says why.
        DeviceError: the device or runtime is not available.
    """
    bundle = store.load(folder, settings.max_version_bytes)
    detector = Detector(bundle, settings.device, settings.runtime, settings.threads)
    detector.self_check()
    size = detector.image_size
    for count in (1, settings.max_batch_size):
        images, features = np.zeros((count, size, size), np.uint8), np.zeros((count, len(FEATURE_NAMES)), np.float32)
        detector.detect(images, features)
        detector.detect(images, reconstructions=True, error_maps=True)
    detector.decode(np.zeros((settings.max_batch_size, detector.latent_dim), np.float32))
    return detector


def check_settings(settings: Settings) -> None:
    """Check that a server with these settings can start: its keys, its device, and a version that can be served.

    Raises:
        KeysError, StoreError, DeviceError: it cannot start; the message says why.
    """
    _read_keys(settings)
    choose_device(settings.device, settings.runtime)
    _versions(settings, settings.model).best()


def _versions(settings: Settings, name: str) -> Versions:
    """The versions of the detector `name`; ODDIGIT_VERSION pins that of the default alone."""
    pinned = settings.version if name == settings.model else None
    return Versions(settings.store, name, pinned, partial(load_detector, settings=settings))


def _other_names(settings: Settings) -> list[str]:
    """The detectors of the store that are served besides the default."""
    return [name for name in store.names(settings.store) if name != settings.model and settings.serves(name)]


def _read_keys(settings: Settings) -> dict[str, str]:
    return read_keys(settings.api_keys.get_secret_value() if settings.api_keys else None, settings.api_keys_file)


def __getattr__(name: str) -> ASGIApp:
    """`app`, created when uvicorn asks for it: importing this module reads no environment and loads no model."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    settings = read_settings(os.environ)
    set_up_logging(settings.log_format)
    for sentence in unknown_variables(os.environ) + missing_in_store(settings, os.environ):
        logger.warning(sentence)
    app = globals()["app"] = create_app(settings)  # uvicorn asks more than once
    return app
