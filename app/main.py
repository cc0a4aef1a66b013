"""Wires the server together: settings in, an ASGI application out. `uvicorn app.main:app` works."""

import gc
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

import numpy as np
import torch
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request

from app.detection import store
from app.detection.detector import Detector
from app.serving.about import About
from app.serving.front import Front
from app.serving.inference import Inference
from app.serving.logs import set_up_logging
from app.serving.openapi import add_routes
from app.serving.routes import Endpoints
from app.serving.settings import Settings, read_settings
from app.serving.upload import Uploads

logger = logging.getLogger(__name__)

_DESCRIPTION = "Tells digit images from everything else: anomaly scores with honest false-alarm rates."


def create_app(settings: Settings, detector: Detector | None = None) -> FastAPI:
    """The server for `settings`. Without a `detector` it loads and checks the one they name when it starts."""
    inference = Inference(max_batch_size=settings.max_batch_size)
    uploads = Uploads(settings)
    endpoints = Endpoints(inference, uploads, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        torch.set_num_threads(settings.threads)
        inference.put_in_service(detector or load_detector(settings))
        gc.collect()
        gc.freeze()  # torch's heap is large; walking it in every collection is what long tails are made of
        yield
        uploads.close()
        inference.close()

    app = FastAPI(title="Oddigit", description=_DESCRIPTION, version="0.1.0", lifespan=lifespan)
    app.add_middleware(
        Front,
        straight={
            "/score": endpoints.score,
            "/embed": endpoints.embed,
            "/reconstruct": endpoints.reconstruct,
        },
    )
    app.add_exception_handler(HTTPException, _pass_on)
    add_routes(app, endpoints, About(inference, settings))
    return app


def load_detector(settings: Settings) -> Detector:
    """The detector that the settings name, verified, self-checked and warm.

    Raises:
        StoreError, DeviceError, SelfCheckError: it cannot be served; the message says why.
    """
    pinned = settings.version is not None
    folder = settings.store / settings.model / str(settings.version) if pinned else store.latest(settings.store, settings.model)
    detector = Detector(store.load(folder), settings.device)
    detector.self_check()
    size = detector.image_size
    for count in (1, settings.max_batch_size):
        detector.detect(np.zeros((count, 1, size, size), np.float32), reconstructions=True, error_maps=True)
    logger.info("serving %s on %s", detector.bundle.label, detector.device)
    return detector


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
