"""The Open Inference Protocol, version 2, over REST: the detector for clients that speak to all model servers alike.

Pixels come as numbers in JSON, whole from 0 to 255, and are judged as 28x28 images that need no preparation; scores, p-values,
verdicts and what else is asked for go as tensors. Source: https://github.com/kserve/open-inference-protocol.
"""

import asyncio
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from app.detection.detector import Detector
from app.detection.imaging.decode import normalise
from app.serving.api import responses as answers
from app.serving.api.predict import late, verdict_of
from app.serving.api.query import JSON, NPY, Options, check_rate
from app.serving.api.responses import Entry
from app.serving.engine.admission import Admission
from app.serving.engine.inference import Inference, InferenceResult, Job, RequestedOutputs
from app.serving.errors import InvalidBody, NotFound, OutOfRange, TooLarge, Unavailable, complaint
from app.serving.http.body import read_body
from app.serving.http.shutdown import Draining
from app.serving.schemas import InferInput, InferRequest
from app.serving.settings import Settings

_INLINE_BYTES = 16 * 1024  # a request of a few images; larger ones are read on a thread
_PLATFORM = "pytorch_autoencoder"
_VERDICTS = frozenset({"score", "p_value", "is_anomaly"})


class OpenInference:
    """The endpoints under /v2."""

    def __init__(self, inference: Inference, admission: Admission, draining: Draining, settings: Settings) -> None:
        self._inference = inference
        self._admission = admission
        self._draining = draining
        self._settings = settings

    async def server(self, request: Request) -> Response:
        """What server this is."""
        return _json({"name": "oddigit", "version": request.app.version, "extensions": []})

    async def live(self, request: Request) -> Response:
        """The process runs and its event loop turns."""
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        """A model is in service, and the server is not shutting down; 503 else."""
        if self._draining.on:
            raise Unavailable("The server is shutting down.", {"retry-after": "1", "connection": "close"})
        return _json({"ready": self._inference.detector is not None})

    async def model(self, request: Request) -> Response:
        """The model's name, version, inputs and outputs."""
        detector = self._named(request)
        card, size, latent = detector.bundle.card, detector.image_size, detector.bundle.model.config.latent_dim
        outputs = [{"name": name, "datatype": kind, "shape": shape} for name, (kind, shape) in _outputs(size, latent).items()]
        inputs = [{"name": "images", "datatype": "UINT8", "shape": [-1, size, size]}]
        versions = [str(card.version)]
        return _json({"name": card.name, "versions": versions, "platform": _PLATFORM, "inputs": inputs, "outputs": outputs})

    async def model_ready(self, request: Request) -> Response:
        """Whether this model answers questions: the one in service does."""
        return _json({"name": self._named(request).bundle.card.name, "ready": True})

    async def infer(self, request: Request) -> Response:
        """Judge images that are sent as numbers."""
        detector, settings = self._named(request), self._settings
        headers, loop = dict(request.scope["headers"]), asyncio.get_running_loop()
        body = await read_body(request.receive, headers, limit=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
        with self._admission:
            deadline = loop.time() + settings.deadline_ms / 1000
            if len(body) <= _INLINE_BYTES:
                asked, pixels = _read(body, detector)
            else:
                asked, pixels = await asyncio.to_thread(_read, body, detector)
            names = _asked_for(asked)
            wanted = RequestedOutputs(
                not _VERDICTS.isdisjoint(names), embeddings=True, reconstructions="reconstruction" in names
            )
            if wanted.reconstructions and len(pixels) > settings.max_pictures:
                raise TooLarge(f"At most {settings.max_pictures:,} reconstructions are answered; send {NPY} to /reconstruct.")
            try:
                outcome = await self._judge(pixels, wanted, deadline)
            except TimeoutError:
                raise late(settings) from None
            if "version" in request.path_params and outcome.bundle is not detector.bundle:  # another took over meanwhile
                raise NotFound(f"Version {detector.bundle.card.version} is no longer in service.")
            if len(body) <= _INLINE_BYTES:
                return _word(asked, outcome)
            return await asyncio.to_thread(_word, asked, outcome)

    async def _judge(self, pixels: NDArray[np.uint8], wanted: RequestedOutputs, deadline: float) -> InferenceResult:
        if len(pixels) > self._settings.max_batch_size:
            return await self._inference.infer_array(pixels, wanted)
        return await self._inference.judge(Job(normalise(pixels), None, wanted), deadline=deadline)

    def _named(self, request: Request) -> Detector:
        """The detector in service, where the path names it. Raises NotFound."""
        detector = self._inference.detector
        name, version = detector.bundle.card.name, str(detector.bundle.card.version)
        asked = request.path_params
        if asked["model"] != name or asked.get("version", version) != version:
            raise NotFound(f"There is no such model or version here; in service is {name}, version {version}.")
        return detector


def _outputs(size: int, latent: int) -> dict[str, tuple[str, list[int]]]:
    """Name -> datatype and shape, without the number of images."""
    return {
        "score": ("FP32", [-1]),
        "p_value": ("FP64", [-1]),
        "is_anomaly": ("BOOL", [-1]),
        "reconstruction_error": ("FP32", [-1]),
        "embedding": ("FP32", [-1, latent]),
        "reconstruction": ("FP32", [-1, size, size]),
    }


def _read(body: bytes, detector: Detector) -> tuple[InferRequest, NDArray[np.uint8]]:
    """The request and its images [N, S, S]. Raises InvalidBody or OutOfRange."""
    if body.count(b"[") + body.count(b"{") > 64 + len(body) // 16:  # rows of pixels are longer; each list takes 56 bytes
        raise InvalidBody("The body nests more than images do.")
    try:
        asked = InferRequest.model_validate_json(body)
    except ValidationError as error:
        raise complaint(error) from None
    return asked, _pixels(asked.inputs[0], detector.image_size)


def _pixels(given: InferInput, size: int) -> NDArray[np.uint8]:
    """The numbers of an input tensor -> uint8 [N, size, size]."""
    count, *rest = given.shape
    if rest not in ([size, size], [size * size], [1, size, size]):
        raise OutOfRange(f"shape must be [N, {size}, {size}] or [N, {size * size}].")
    numbers, shape = _unnested(given.data)
    try:
        pixels = bytes(numbers) if set(map(type, numbers)) == {int} else b""
    except (ValueError, OverflowError):
        pixels = b""
    if not pixels:
        raise OutOfRange("data must hold whole numbers from 0 to 255, in one list or in lists of equal lengths.")
    if len(numbers) != math.prod(given.shape) or (len(shape) > 1 and shape != given.shape):
        raise OutOfRange("data and shape do not agree.")
    return np.frombuffer(pixels, np.uint8).reshape(count, size, size)


def _unnested(data: list[Any]) -> tuple[list[Any], list[int]]:
    """Lists in lists -> their elements in one list, and their shape. By hand: an array of what a client sends may be one of
    strings as long as the longest, or of anything."""
    shape = [len(data)]
    while data and set(map(type, data)) == {list}:
        lengths = set(map(len, data))
        if len(lengths) > 1:
            return [], shape
        shape.append(lengths.pop())
        data = list(chain.from_iterable(data))
    return data, shape


def _asked_for(asked: InferRequest) -> Sequence[str]:
    """The names of the outputs; all but the reconstruction where none is named."""
    if asked.outputs:
        return [output.name for output in asked.outputs]
    return [name for name in _outputs(0, 0) if name != "reconstruction"]


def _word(asked: InferRequest, outcome: InferenceResult) -> Response:
    card, seen = outcome.bundle.card, outcome.detections
    alpha = asked.parameters.alpha if asked.parameters else None
    rate = None if alpha is None else check_rate("parameters.alpha", alpha)
    columns: dict[str, NDArray[Any]] = {
        "score": seen.scores,
        "p_value": seen.p_values,
        "is_anomaly": seen.scores > verdict_of(outcome, Options(alpha=rate)).threshold,
        "reconstruction_error": seen.reconstruction_errors,
        "embedding": seen.embeddings,
    }
    if seen.reconstructions is not None:
        columns["reconstruction"] = answers.unit_range(seen)
    tensors = [_tensor(name, columns[name]) for name in _asked_for(asked)]
    answer: Entry = {"model_name": card.name, "model_version": str(card.version), "outputs": tensors}
    return _json(answer if asked.id is None else {**answer, "id": asked.id})


def _tensor(name: str, values: NDArray[Any]) -> Entry:
    datatype, _ = _outputs(0, 0)[name]
    return {"name": name, "datatype": datatype, "shape": list(values.shape), "data": values.ravel().tolist()}


def _json(content: object) -> Response:
    return Response(answers.json_bytes(content), media_type=JSON)
