"""Wires the server together: settings in, an ASGI application out. `uvicorn app.main:app` works."""

import asyncio
import gc
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send
from threadpoolctl import threadpool_limits

from app.detection import store
from app.detection.detector import Detector
from app.detection.imaging.upload_features import FEATURE_NAMES
from app.detection.runtimes import choose_device
from app.serving.api.demo_page import add_page
from app.serving.api.health import HealthEndpoints, ServerStatus
from app.serving.api.model_info import ModelInfoEndpoints
from app.serving.api.open_inference import OpenInference
from app.serving.api.predict import Endpoints
from app.serving.api.routes import add_routes
from app.serving.api.uploads import Uploads
from app.serving.engine.admission import Admission
from app.serving.engine.inference import Inference
from app.serving.engine.reload import Versions, watch
from app.serving.http.auth import ApiKeyAuth, read_keys
from app.serving.http.limits import DROPPED_BYTES, STATE_KEY, Breather, Limits, Room, room_for
from app.serving.http.middleware import CarryErrors, Front
from app.serving.http.shutdown import Draining
from app.serving.settings import Settings, read_settings
from app.serving.telemetry.drift import TrafficMonitor
from app.serving.telemetry.log_setup import set_up_logging
from app.serving.telemetry.metrics import Metrics
from app.serving.telemetry.tracing import with_tracing

logger = logging.getLogger(__name__)

VERSION = version("oddigit")

_DOCUMENT: dict[str, Any] = {
    "title": "Oddigit",
    "description": "Tells digit images from everything else: anomaly scores with honest false-alarm rates.",
    "version": VERSION,
    "redirect_slashes": False,
    "docs_url": None,  # the API page is our own
    "redoc_url": None,
}


class Server(FastAPI):
    """The framework's application with our front before all of it: its own layers cost a question more than the model does."""

    outermost: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.outermost(scope, receive, send)

    async def inner(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What the framework would have done without the front."""
        await super().__call__(scope, receive, send)


def create_app(settings: Settings) -> FastAPI:
    """The server for `settings`. The model is loaded and checked when it starts, not before.

    Raises:
        KeysError: the API keys cannot be used.
    """
    guard = ApiKeyAuth(_keys(settings))
    shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    metrics = Metrics(Path(shared) if shared else None)
    draining = Draining()
    monitor = TrafficMonitor(metrics, settings.drift_level)
    inference = Inference(max_batch_size=settings.max_batch_size, watcher=monitor.record_batch)
    uploads = Uploads(settings)
    admission = Admission(max_waiting=settings.max_waiting, deadline_s=settings.deadline_ms / 1000)
    endpoints = Endpoints(inference, uploads, admission, metrics, settings)
    versions = Versions(settings.store, settings.model, settings.version, partial(load_detector, settings=settings))
    health = HealthEndpoints(inference, ServerStatus(draining, versions, monitor, admission, metrics))
    model_info = ModelInfoEndpoints(inference, settings)

    def set_model(detector: Detector) -> None:
        inference.set_model(detector)
        monitor.set_model(detector.bundle, str(detector.device))
        logger.info("serving %s on %s", detector.bundle.label, detector.device)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        threadpool_limits(settings.threads, user_api="blas")  # numpy would take every core for a product of microseconds
        first = versions.best()
        assert first is not None  # nothing is in service yet that could be the best already
        set_model(first)
        for _ in versions.refused:
            metrics.record_refused_version()
        draining.begin_on_sigterm(settings.drain_s)
        tasks = [asyncio.create_task(_keep_counting(metrics, health))]
        if settings.reload:
            tasks.append(asyncio.create_task(watch(versions, inference, metrics, set_model)))
        gc.collect()
        gc.freeze()  # the heap is large; walking it in every collection is what long tails are made of
        yield {STATE_KEY: limits._replace(connections=room_for(settings.max_connections))}
        for task in tasks:
            task.cancel()
        uploads.close()
        inference.close()

    app = Server(lifespan=lifespan, **_DOCUMENT)
    straight = {"/score": endpoints.score, "/embed": endpoints.embed, "/reconstruct": endpoints.reconstruct}
    app.add_middleware(CarryErrors)
    app.add_exception_handler(HTTPException, _pass_on)
    open_inference = OpenInference(inference, admission, draining, settings)
    add_routes(app, endpoints, model_info, health, open_inference, key_optional=guard.open)
    add_page(app)
    front = Front(app.inner, straight, guard, admission, metrics, draining)
    paths = {getattr(route, "path", "") for route in app.routes}
    app.outermost = with_tracing(_with_cors(front, settings.cors_origins), paths, os.environ)
    limits = _limits(settings)
    if app.outermost is front:  # else others have a say in every answer
        limits = _with_short_ways(limits, front, admission, uploads, settings)
    return app


def _limits(settings: Settings) -> Limits:
    room = Room(settings.max_bodies_bytes)
    return Limits(settings.max_connections, settings.head_timeout_s, settings.answer_timeout_s, room)


def _with_short_ways(limits: Limits, front: Front, admission: Admission, uploads: Uploads, settings: Settings) -> Limits:
    """For a server whose connections lead straight to the front: whole answers at once, and crowds turned away at the door."""
    return limits._replace(
        direct=True,
        dropped_bytes=min(DROPPED_BYTES, settings.max_body_bytes),
        crowded=lambda: admission.full,
        turn_away=front.turn_away,
        breather=Breather(lambda: uploads.off_loop > 1),
    )


def _with_cors(app: ASGIApp, origins: str) -> ASGIApp:
    """`app` for the pages of these origins too, which are separated by commas; `app` itself where there are none."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=[origin.strip() for origin in origins.split(",")],
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["X-Request-ID", "Server-Timing", "Retry-After"],
    )


async def _keep_counting(metrics: Metrics, health: HealthEndpoints) -> None:
    """So that a scrape of one worker finds the others' numbers fresh."""
    while True:
        await asyncio.sleep(1)
        health.update_gauges()
        metrics.flush()


def load_detector(folder: Path, settings: Settings) -> Detector:
    """A version, verified, self-checked and warm.

    Raises:
        StoreError, SelfCheckError: it must not be served; the message says why.
        DeviceError: the device is not there.
    """
    detector = Detector(store.load(folder), settings.device, threads=settings.threads)
    detector.self_check()
    size = detector.image_size
    for count in (1, settings.max_batch_size):
        images, seen = np.zeros((count, size, size), np.uint8), np.zeros((count, len(FEATURE_NAMES)), np.float32)
        detector.detect(images, seen)
        detector.detect(images, reconstructions=True, error_maps=True)
    return detector


def check_settings(settings: Settings) -> None:
    """Find out before a server starts whether it could: keys, device, and a version that can be served.

    Raises:
        KeysError, StoreError, DeviceError: it could not; the message says why.
    """
    _keys(settings)
    choose_device(settings.device)
    Versions(settings.store, settings.model, settings.version, partial(load_detector, settings=settings)).best()


def _keys(settings: Settings) -> dict[str, str]:
    return read_keys(settings.api_keys.get_secret_value() if settings.api_keys else None, settings.api_keys_file)


async def _pass_on(request: Request, error: Exception) -> NoReturn:
    """Leave the framework's own errors to the front, which words all errors alike."""
    raise error


def __getattr__(name: str) -> FastAPI:
    """`app`, made when uvicorn asks for it: importing this module reads no environment and loads nothing."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    settings = read_settings(os.environ)
    set_up_logging(settings.log_format, access_log=settings.access_log)
    return create_app(settings)
