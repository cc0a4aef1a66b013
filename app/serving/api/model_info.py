"""The endpoints that describe the model in service: its card, its report, its latent plane."""

import asyncio
from pathlib import Path

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from app.detection.bundle import Bundle
from app.detection.detector import Detector
from app.detection.store import REPORT
from app.serving import schemas
from app.serving.api.openapi import API_KEY, BINARY, json_body, problems
from app.serving.api.query import JSON, PNG
from app.serving.api.responses import json_bytes, model_entry, picture_text, to_uint8
from app.serving.engine.inference import Inference
from app.serving.errors import NotFound, OutOfRange, from_validation_error
from app.serving.http.body import read_body
from app.serving.settings import Settings

_MAX_DECODE_BYTES = 128 * 1024  # 1,024 points with all digits of their coordinates fit


class PngFile(FileResponse):
    media_type = PNG


class ModelInfoEndpoints:
    """/model, /model/report/{picture}, /latent and /decode."""

    def __init__(self, inference: Inference, settings: Settings) -> None:
        self._inference = inference
        self._settings = settings
        self.router = router = APIRouter(tags=["model"], dependencies=API_KEY)
        router.get("/model", operation_id="get_model", responses=problems(401))(self.card)
        router.get(
            "/model/report/{picture}",
            operation_id="get_report_picture",
            response_class=PngFile,
            responses={200: {"content": {PNG: {"schema": BINARY}}}, **problems(401, 404)},
        )(self.report_picture)
        router.get(
            "/latent", operation_id="get_latent", response_model=schemas.Latent, responses=problems(401, 404)
        )(self.latent)  # fmt: skip
        router.post(
            "/decode",
            operation_id="decode",
            response_model=schemas.DecodeResponse,
            responses=problems(400, 401, 408, 413, 422, 503),
            openapi_extra=json_body(schemas.DecodeRequest),
        )(self.decode)

    async def card(self) -> schemas.ModelCard:
        """The card of the model in service and the device that it runs on."""
        detector = self._inference.detector
        return schemas.ModelCard(**detector.bundle.card.model_dump(), device=str(detector.device))

    async def report_picture(self, picture: str) -> PngFile:
        """A picture of the model's report, named in `files` of the card."""
        bundle = self._inference.detector.bundle
        path = _report_file(bundle, picture) if picture.endswith(".png") else None
        if path is None:
            pictures = sorted(name.removeprefix(f"{REPORT}/") for name in bundle.card.files if name.endswith(".png"))
            raise NotFound(f"The report has no such picture; it has: {', '.join(pictures) or 'none'}.")
        return PngFile(path)

    async def latent(self) -> Response:
        """The test images' coordinates in the latent plane, with their labels."""
        path = _report_file(self._inference.detector.bundle, "latent.npz")
        if path is None:
            raise NotFound("This version has no map of its latent plane.")
        return await asyncio.to_thread(_latent_response, path)

    async def decode(self, request: Request) -> Response:
        """The images that the decoder makes of points in the latent plane."""
        headers = dict(request.scope["headers"])
        body = await read_body(request.receive, headers, limit=_MAX_DECODE_BYTES)
        try:
            points = schemas.DecodeRequest.model_validate_json(body).embedding
        except ValidationError as error:
            raise from_validation_error(error) from None
        detector = self._inference.detector
        dimensions = detector.latent_dim
        if any(len(point) != dimensions for point in points):
            raise OutOfRange(f"Each point of embedding must have {dimensions} coordinates.")
        return await asyncio.to_thread(_decode_response, detector, np.array(points, np.float32))


def _report_file(bundle: Bundle, name: str) -> Path | None:
    """A file of the report; None if the card does not list it, or if the version was deleted from the store."""
    listed = f"{REPORT}/{name}"
    if bundle.folder is None or listed not in bundle.card.files or not (bundle.folder / listed).is_file():
        return None
    return bundle.folder / listed


def _latent_response(path: Path) -> Response:
    """latent.npz -> JSON. Written by hand: pydantic would check 10,000 points on the event loop."""
    with np.load(path, allow_pickle=False) as arrays:
        content = {"embedding": arrays["embeddings"].tolist(), "labels": arrays["labels"].tolist()}
    return Response(json_bytes(content), media_type=JSON)


def _decode_response(detector: Detector, embeddings: NDArray[np.float32]) -> Response:
    """Embeddings [N, D] -> JSON with a PNG for each."""
    pictures = [picture_text(to_uint8(image)) for image in detector.decode(embeddings)]
    return Response(json_bytes({"model": model_entry(detector.bundle), "images": pictures}), media_type=JSON)
