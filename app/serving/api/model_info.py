"""The endpoints that describe the models in service: which there are, and of each its card, its report, its latent space."""

import asyncio
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from app.detection.bundle import Bundle, BundleError, read_npz
from app.detection.detector import Detector
from app.detection.model_card import Card
from app.detection.store import REPORT
from app.serving import schemas
from app.serving.api.caching import NOT_MODIFIED, cacheable, compressed, not_modified
from app.serving.api.calibration_summary import CalibrationSummary, summarise_calibration
from app.serving.api.openapi import API_KEY, BINARY, ModelName, json_body, problems
from app.serving.api.query import JSON, PNG
from app.serving.api.responses import json_bytes, model_entry, picture_text, to_uint8
from app.serving.engine.daemon_threads import start_daemon
from app.serving.engine.models import Models
from app.serving.engine.thread_stage import Deadline, ThreadStage
from app.serving.errors import NotFound, OutOfRange, from_validation_error
from app.serving.http.body import read_body
from app.serving.settings import Settings

LATENT = "latent.npz"  # of the report

_COORDINATE_BYTES = 64  # of JSON: all digits of a coordinate fit
_POINT_S, _LATENT_S = 60e-6, 0.005  # cost of a point of /decode, of the map of the latent space
_MAX_LATENT = 2000  # points of /latent
_CHUNK_POINTS = 64  # between two looks at the deadline
_MAX_QUOTES = 64  # in the body of /decode, which has one key
_MAX_DECODE_BYTES = 2**19  # parsed in 15 ms on the event loop; 1,024 points of 25 such coordinates fit


class PngResponse(Response):
    media_type = PNG


class ModelInfoEndpoints:
    """/models, /model, /model/calibration, /model/report/{picture}, /latent and /decode."""

    def __init__(self, models: Models, pictures: ThreadStage, settings: Settings) -> None:
        """`pictures` is the thread that makes pictures of points."""
        self._models = models
        self._pictures = pictures
        self._reading: dict[Path, asyncio.Future[bytes]] = {}  # files of reports that are being read
        self._deadline_s = settings.deadline_ms / 1000
        self.router = router = APIRouter(tags=["model"], dependencies=API_KEY)
        router.get("/models", operation_id="get_models", responses=problems(401))(self.models)
        router.get("/model", operation_id="get_model", responses=problems(401, 404))(self.card)
        router.get(
            "/model/report/{picture}",
            operation_id="get_report_picture",
            response_class=PngResponse,
            responses={200: {"content": {PNG: {"schema": BINARY}}}, **NOT_MODIFIED, **problems(401, 404, 503, 504)},
        )(self.report_picture)
        router.get("/model/calibration", operation_id="get_calibration", responses=problems(401, 404))(self.calibration)
        router.get(
            "/latent",
            operation_id="get_latent",
            response_model=schemas.Latent,
            responses={**NOT_MODIFIED, **problems(401, 404, 503, 504)},
        )(self.latent)
        router.post(
            "/decode",
            operation_id="decode",
            response_model=schemas.DecodeResponse,
            responses=problems(400, 401, 404, 408, 413, 422, 503, 504),
            openapi_extra=json_body(schemas.DecodeRequest),
        )(self.decode)

    async def models(self) -> schemas.ModelList:
        """The models in service, the versions of each in the store, and the memory of the process with all of them."""
        served = []
        for model in self._models:
            detector = model.inference.detector
            card, device = detector.bundle.card, str(detector.device)
            served.append(served_model(card, model.versions.stored, device, detector.runtime))
        return schemas.ModelList(default=self._models.default.name, memory_bytes=resident_memory_bytes(), models=served)

    async def card(self, model: ModelName = None) -> schemas.ModelCard:
        """The card of the model in service and the device that it runs on."""
        detector = self._detector(model)
        return schemas.ModelCard(**detector.bundle.card.model_dump(), device=str(detector.device))

    async def calibration(self, model: ModelName = None) -> CalibrationSummary:
        """The scores of the calibration images: a histogram, and thresholds at common false-alarm rates."""
        return summarise_calibration(self._detector(model).bundle)

    async def report_picture(self, request: Request, picture: str, model: ModelName = None) -> Response:
        """A picture of the model's report, named in `files` of the card."""
        bundle = self._detector(model).bundle
        if not picture.endswith(".png") or not _has_in_report(bundle, picture):
            pictures = sorted(name.removeprefix(f"{REPORT}/") for name in bundle.card.files if name.endswith(".png"))
            raise NotFound(f"The report has no such picture; it has: {', '.join(pictures) or 'none'}.")
        etag = _etag(bundle, picture)
        if (response := not_modified(request, etag)) is not None:
            return response
        content = await self._read_report(bundle, picture, self._due())
        return PngResponse(content, headers={"ETag": etag, "Cache-Control": "no-cache"})

    async def latent(self, request: Request, model: ModelName = None) -> Response:
        """Coordinates of test images in the latent space, with their labels."""
        bundle = self._detector(model).bundle
        if not _has_in_report(bundle, LATENT):
            raise NotFound("This version has no map of its latent space.")
        etag = _etag(bundle, LATENT)
        if (response := not_modified(request, etag)) is not None:
            return response
        due = self._due()
        content = await self._read_report(bundle, LATENT, due)
        return await self._pictures.run(_LATENT_S, due, _latent_response, content, request, etag)

    async def decode(self, request: Request, model: ModelName = None) -> Response:
        """The images that the decoder makes of points in the latent space."""
        detector = self._detector(model)
        limit = min(schemas.MAX_POINTS * _COORDINATE_BYTES * detector.latent_dim, _MAX_DECODE_BYTES)
        self._pictures.check()  # before the body is received and parsed
        body = bytes(await read_body(request.receive, dict(request.scope["headers"]), limit=limit))
        if body.count(b'"') > _MAX_QUOTES:  # each unknown key is an error of its own
            raise OutOfRange("The body has other keys than embedding.")
        try:
            points = schemas.DecodeRequest.model_validate_json(body).embedding
        except ValidationError as error:
            raise from_validation_error(error) from None
        dimensions = detector.latent_dim
        if any(len(point) != dimensions for point in points):
            raise OutOfRange(f"Each point of embedding must have {dimensions} coordinates.")
        cost = len(points) * _POINT_S
        return await self._pictures.run(cost, self._due(), _decode_response, request, detector, np.array(points, np.float32))

    async def _read_report(self, bundle: Bundle, name: str, due: float) -> bytes:
        """A file of the report, read beside the event loop: the store's disk may hang. Raises NotFound or TimeoutError."""
        assert bundle.folder is not None
        path = bundle.folder / REPORT / name
        if (reading := self._reading.get(path)) is None:  # requests for one file share one thread
            reading = self._reading[path] = asyncio.wrap_future(start_daemon(path.read_bytes))
            reading.add_done_callback(partial(self._forget_reading, path))
        async with asyncio.timeout_at(due):
            await asyncio.wait([reading])
        try:
            return reading.result()
        except OSError:
            raise NotFound("This version was deleted from the store.") from None

    def _forget_reading(self, path: Path, reading: asyncio.Future[bytes]) -> None:
        del self._reading[path]
        if not reading.cancelled():
            reading.exception()  # it may be that nobody waits for it any more

    def _due(self) -> float:
        """The time of the event loop by which a request that comes now must be answered."""
        return asyncio.get_running_loop().time() + self._deadline_s

    def _detector(self, model: str | None) -> Detector:
        return self._models.find(model).inference.detector


def _etag(bundle: Bundle, name: str) -> str:
    """The ETag of a file of the report: its checksum in the card."""
    return f'"{bundle.card.files[f"{REPORT}/{name}"][:32]}"'


def served_model(card: Card, stored_versions: list[int], device: str, runtime: str) -> schemas.ServedModel:
    """The entry of a model in the list of models."""
    return schemas.ServedModel(
        name=card.name,
        version=card.version,
        stored_versions=stored_versions,
        scorer=card.scorer,
        preprocess=card.preprocess,
        alpha=card.alpha,
        latent_dim=card.architecture.latent_dim,
        device=device,
        runtime=runtime,
    )


def resident_memory_bytes() -> int | None:
    """Resident memory of this process; None where /proc does not have it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _has_in_report(bundle: Bundle, name: str) -> bool:
    return bundle.folder is not None and f"{REPORT}/{name}" in bundle.card.files


def _latent_response(deadline: Deadline, content: bytes, request: Request, etag: str) -> Response:
    """latent.npz -> JSON. Written by hand: pydantic would check all points on the event loop."""
    try:
        return cacheable(request, json_bytes(latent_points(content)), JSON, etag)
    except (KeyError, BundleError):
        raise NotFound("The map of this version's latent space cannot be read.") from None


def latent_points(content: bytes) -> dict[str, Any]:
    """The fields of schemas.Latent from the content of a latent.npz. Raises KeyError or BundleError."""
    arrays = read_npz(content, LATENT)
    embeddings, labels = arrays["embeddings"], arrays["labels"]
    if embeddings.ndim != 2 or labels.ndim != 1:
        raise BundleError(f"{LATENT} does not hold points with labels.")
    step = max(1, -(-len(labels) // _MAX_LATENT))
    return {"embedding": embeddings[::step].astype(np.float64).round(3).tolist(), "labels": labels[::step].tolist()}


def _decode_response(deadline: Deadline, request: Request, detector: Detector, embeddings: NDArray[np.float32]) -> Response:
    """Embeddings [N, D] -> JSON with a PNG for each. Raises TimeoutError after the deadline."""
    pictures = []
    for start in range(0, len(embeddings), _CHUNK_POINTS):
        deadline.check()
        pictures += [picture_text(to_uint8(image)) for image in detector.decode(embeddings[start : start + _CHUNK_POINTS])]
    return compressed(request, json_bytes({"model": model_entry(detector.bundle), "images": pictures}), JSON)
