"""The endpoints that tell of the server and its model: probes, card, report, latent plane."""

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as METRICS_TYPE
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response

from app.detection.bundle import Bundle
from app.detection.detector import Detector
from app.detection.imaging.decode import to_pixels
from app.detection.store import REPORT
from app.serving.api import responses as answers
from app.serving.api.query import JSON
from app.serving.engine.admission import Admission
from app.serving.engine.inference import Inference
from app.serving.errors import PROBLEMS, NotFound, OutOfRange, Unavailable, complaint
from app.serving.http.body import read_body
from app.serving.http.shutdown import Draining
from app.serving.schemas import DecodeRequest
from app.serving.settings import Settings
from app.serving.telemetry.drift import Drift
from app.serving.telemetry.metrics import Metrics

_DECODE_BYTES = 128 * 1024  # room for the most points, each with all its digits


class State(NamedTuple):
    """What the server knows of itself beside its model."""

    draining: Draining
    refused: Callable[[], dict[int, str]]  # versions of the store that may not serve, and why
    drift: Callable[[], Drift]


class About:
    """Answers about the detector in service."""

    def __init__(self, inference: Inference, admission: Admission, metrics: Metrics, state: State, settings: Settings) -> None:
        self._inference = inference
        self._admission = admission
        self._metrics = metrics
        self._state = state
        self._settings = settings

    async def livez(self, request: Request) -> Response:
        """The process runs and its event loop turns."""
        return _json({"status": "alive"})

    async def readyz(self, request: Request) -> Response:
        """The model is loaded, its self-check has passed on this device, and the server is not shutting down; 503 else."""
        if self._state.draining.on:
            raise Unavailable("The server is shutting down.", {"retry-after": "1", "connection": "close"})
        detector = self._inference.detector
        refused = [{"version": number, "reason": reason} for number, reason in sorted(self._state.refused().items())]
        model = answers.model_entry(detector.bundle)
        return _json({"status": "ready", "model": model, "device": str(detector.device), "refused_versions": refused})

    async def metrics(self, request: Request) -> Response:
        """Metrics in Prometheus's text format."""
        self.update_gauges()
        return Response(self._metrics.text(), media_type=METRICS_TYPE)

    def update_gauges(self) -> None:
        """Set the gauges of the current state."""
        drift = self._state.drift()
        self._metrics.set_gauges(
            in_flight=self._admission.in_flight,
            queued_images=self._inference.queued_images,
            drift_capital=drift.capital,
            drifting=drift.drifting,
        )

    async def drift(self, request: Request) -> Response:
        """Whether the traffic still looks like what the model was calibrated for."""
        return _json({"model": answers.model_entry(self._inference.detector.bundle), **asdict(self._state.drift())})

    async def model(self, request: Request) -> Response:
        """The card of the model in service, and the device it runs on."""
        detector = self._inference.detector
        return _json({**detector.bundle.card.model_dump(mode="json"), "device": str(detector.device)})

    async def report(self, request: Request) -> Response:
        """A picture of the model's report."""
        picture = request.path_params["picture"]
        bundle = self._inference.detector.bundle
        path = _report_file(bundle, picture) if picture.endswith(".png") else None
        if path is None:
            have = sorted(name.removeprefix(f"{REPORT}/") for name in bundle.card.files if name.endswith(".png"))
            raise NotFound(f"The report has no such picture; there are: {', '.join(have) or 'none'}.")
        return FileResponse(path, media_type="image/png")

    async def latent(self, request: Request) -> Response:
        """The test images in the latent plane, with their labels."""
        path = _report_file(self._inference.detector.bundle, "latent.npz")
        if path is None:
            raise NotFound("This version has no map of its latent plane.")
        return await asyncio.to_thread(_latent_answer, path)

    async def decode(self, request: Request) -> Response:
        """What the network draws at points of the latent plane."""
        body = await read_body(
            request.receive,
            dict(request.scope["headers"]),
            limit=_DECODE_BYTES,
            timeout_s=self._settings.body_timeout_s,
        )
        try:
            asked = DecodeRequest.model_validate_json(body)
        except ValidationError as error:
            raise complaint(error) from None
        detector = self._inference.detector
        return await asyncio.to_thread(_decode_answer, detector, _codes(asked, detector))

    async def problem(self, request: Request) -> Response:
        """What a problem type means."""
        for problem in PROBLEMS:
            if problem.type == request.path_params["type"]:
                return PlainTextResponse(f"{problem.title} ({problem.status})\n\n{problem.__doc__}\n")
        raise NotFound("There is no such problem type.")


def _report_file(bundle: Bundle, name: str) -> Path | None:
    """A file of the report; None where the card lists none, or the version was removed from under the server."""
    listed = f"{REPORT}/{name}"
    if bundle.folder is None or listed not in bundle.card.files or not (bundle.folder / listed).is_file():
        return None
    return bundle.folder / listed


def _latent_answer(path: Path) -> Response:
    with np.load(path, allow_pickle=False) as arrays:
        return _json({"embedding": arrays["embeddings"].tolist(), "labels": arrays["labels"].tolist()})


def _decode_answer(detector: Detector, codes: NDArray[np.float32]) -> Response:
    pictures = [answers.picture_text(image[0]) for image in to_pixels(detector.decode(codes))]
    return _json({"model": answers.model_entry(detector.bundle), "images": pictures})


def _codes(asked: DecodeRequest, detector: Detector) -> NDArray[np.float32]:
    dimensions = detector.bundle.model.config.latent_dim
    if any(len(point) != dimensions for point in asked.embedding):
        raise OutOfRange(f"Each point of embedding must have {dimensions} coordinates.")
    return np.array(asked.embedding, np.float32)


def _json(content: object) -> Response:
    return Response(answers.json_bytes(content), media_type=JSON)
