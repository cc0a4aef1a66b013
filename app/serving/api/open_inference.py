"""The Open Inference Protocol, version 2, over REST: the detector for clients of any model server.

Pixels come as integers from 0 to 255 in JSON and are scored as 28x28 images that need no preparation. Scores, p-values,
verdicts and other requested outputs are returned as tensors. Source: https://github.com/kserve/open-inference-protocol.
"""

import asyncio
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from app.detection.detector import Detector
from app.serving import schemas
from app.serving.api import responses
from app.serving.api.openapi import API_KEY, WATCH, infer_problems, json_body
from app.serving.api.predict import deadline_error, decide
from app.serving.api.query import JSON, NPY, Options, check_rate, read_options
from app.serving.api.responses import Entry
from app.serving.engine.admission import Admission
from app.serving.engine.inference import Inference, InferenceResult, Job, RequestedOutputs
from app.serving.engine.models import Models
from app.serving.engine.thread_stage import Deadline, Stages
from app.serving.errors import BadRequest, NotFound, OutOfRange, TooLarge, Unavailable, from_validation_error
from app.serving.http.body import read_body
from app.serving.http.shutdown import Draining
from app.serving.settings import Settings

_INLINE_BYTES = 16 * 1024  # larger bodies are parsed on a thread
_PARSE_BYTE_S, _ENTRY_S = 50e-9, 10e-6  # cost of parsing a byte of JSON, of an image in a response
_PLATFORMS = {"onnx": "onnxruntime_onnx", "torch": "pytorch_state_dict"}  # by the detector's runtime
_SCORING_OUTPUTS = frozenset({"score", "p_value", "is_anomaly"})


class OpenInference:
    """The endpoints under /v2."""

    def __init__(self, models: Models, admission: Admission, stages: Stages, draining: Draining, settings: Settings) -> None:
        self._models = models
        self._admission = admission
        self._stages = stages
        self._draining = draining
        self._settings = settings
        self.router = APIRouter(prefix="/v2", tags=["open inference"])
        self._add_server_routes()
        self._add_model_routes()

    def _add_server_routes(self) -> None:
        get = self.router.get
        get("", operation_id="v2_server_metadata", dependencies=API_KEY, responses=infer_problems(401))(self.server_metadata)
        get("/health/live", operation_id="v2_server_live")(self.server_live)
        get("/health/ready", operation_id="v2_server_ready", responses=infer_problems(503))(self.server_ready)

    def _add_model_routes(self) -> None:
        model, version = "/models/{model}", "/models/{model}/versions/{version}"
        known = infer_problems(401, 404)
        get = self.router.get
        get(model, operation_id="v2_model_metadata", dependencies=API_KEY, responses=known)(self.model_metadata)
        get(version, operation_id="v2_version_metadata", dependencies=API_KEY, responses=known)(self.version_metadata)
        get(f"{model}/ready", operation_id="v2_model_ready", dependencies=API_KEY, responses=known)(self.model_ready)
        get(f"{version}/ready", operation_id="v2_version_ready", dependencies=API_KEY, responses=known)(self.version_ready)
        infer: dict[str, Any] = {
            "dependencies": API_KEY,
            "response_model": schemas.InferResponse,
            "responses": infer_problems(400, 401, 404, 408, 413, 422, 503, 504),
            "openapi_extra": {**json_body(schemas.InferRequest), "parameters": [WATCH]},
        }
        self.router.post(f"{model}/infer", operation_id="v2_model_infer", **infer)(self.model_infer)
        self.router.post(f"{version}/infer", operation_id="v2_version_infer", **infer)(self.version_infer)

    async def server_metadata(self, request: Request) -> schemas.InferServer:
        """Name, version and extensions of the server."""
        return schemas.InferServer(name="oddigit", version=request.app.version, extensions=[])

    async def server_live(self) -> schemas.InferLive:
        """Liveness: the process runs and its event loop responds."""
        return schemas.InferLive(live=True)

    async def server_ready(self) -> schemas.InferReady:
        """Readiness: the default model is in service, and the server is not shutting down."""
        if self._draining.on:
            raise Unavailable("The server is shutting down.", {"retry-after": "1"})
        return schemas.InferReady(ready=self._models.default.inference.is_loaded)

    async def model_metadata(self, model: str) -> schemas.InferModel:
        """Name, versions, inputs and outputs of a model."""
        return _metadata(self._find(model).detector)

    async def version_metadata(self, model: str, version: str) -> schemas.InferModel:
        """Name, versions, inputs and outputs of one version of a model."""
        return _metadata(self._find(model, version).detector)

    async def model_ready(self, model: str) -> schemas.InferModelReady:
        """Readiness of a model: the one in service is ready."""
        return schemas.InferModelReady(name=self._find(model).detector.bundle.card.name, ready=True)

    async def version_ready(self, model: str, version: str) -> schemas.InferModelReady:
        """Readiness of one version of a model."""
        return schemas.InferModelReady(name=self._find(model, version).detector.bundle.card.name, ready=True)

    async def model_infer(self, model: str, request: Request) -> Response:
        """Score images that are sent as numbers."""
        return await self._infer(request, self._find(model))

    async def version_infer(self, model: str, version: str, request: Request) -> Response:
        """Score images that are sent as numbers, with one version of a model."""
        return await self._infer(request, self._find(model, version), pinned=True)

    async def _infer(self, request: Request, inference: Inference, *, pinned: bool = False) -> Response:
        """Read, check and score the request's images; `pinned`: only the version that is in service now may answer."""
        settings, loop, detector = self._settings, asyncio.get_running_loop(), inference.detector
        watch = read_options(request.scope["query_string"]).watch == "1"
        headers = dict(request.scope["headers"])
        body = await read_body(request.receive, headers, limit=settings.max_body_bytes)
        inline = len(body) <= _INLINE_BYTES
        deadline = loop.time() + settings.deadline_ms / 1000
        try:
            with self._admission:
                if inline:
                    infer_request, pixels = _parse(None, body, detector)
                else:
                    with self._admission.elsewhere():
                        cost = len(body) * _PARSE_BYTE_S
                        infer_request, pixels = await self._stages.pictures.run(cost, deadline, _parse, body, detector)
                outputs = self._requested_outputs(infer_request, len(pixels), watch=watch)
                result = await self._score(inference, pixels, outputs, deadline)
                if pinned and result.bundle is not detector.bundle:  # replaced while the request waited
                    raise NotFound(f"Version {detector.bundle.card.version} is no longer in service.")
                if inline:
                    return _response(None, infer_request, result)
                with self._admission.elsewhere():
                    cost = len(pixels) * _ENTRY_S
                    return await self._stages.pictures.run(cost, deadline, _response, infer_request, result)
        except TimeoutError:
            raise deadline_error(settings) from None

    def _requested_outputs(self, infer_request: schemas.InferRequest, images: int, *, watch: bool) -> RequestedOutputs:
        """What the detector must compute. Raises TooLarge for too many reconstructions."""
        names = _output_names(infer_request)
        reconstructions = "reconstruction" in names
        most = self._settings.max_pictures
        if reconstructions and images > most:
            raise TooLarge(f"A response holds at most {most:,} reconstructions; send {NPY} to /reconstruct for more.")
        verdicts = watch and not _SCORING_OUTPUTS.isdisjoint(names)
        return RequestedOutputs(verdicts, reconstructions=reconstructions)

    async def _score(
        self, inference: Inference, pixels: NDArray[np.uint8], outputs: RequestedOutputs, deadline: float
    ) -> InferenceResult:
        if len(pixels) > self._settings.max_batch_size:
            with self._admission.elsewhere():
                return await inference.infer_array(pixels, outputs, deadline=deadline)
        return await inference.infer(Job(pixels, None, outputs), deadline=deadline)

    def _find(self, model: str, version: str | None = None) -> Inference:
        """The inference of a model in service. Raises UnknownModel, or NotFound if another version is in service."""
        inference = self._models.find(model).inference
        card = inference.detector.bundle.card
        if version not in (None, str(card.version)):
            raise NotFound(f"There is no such version here; in service is {card.name}, version {card.version}.")
        return inference


def _metadata(detector: Detector) -> schemas.InferModel:
    card, size, latent_dim = detector.bundle.card, detector.image_size, detector.latent_dim
    return schemas.InferModel(
        name=card.name,
        versions=[str(card.version)],
        platform=_PLATFORMS[detector.runtime],
        inputs=[schemas.InferTensor(name="images", datatype="UINT8", shape=[-1, size, size])],
        outputs=[
            schemas.InferTensor(name=name, datatype=datatype, shape=shape)
            for name, (datatype, shape) in _outputs(size, latent_dim).items()
        ],
    )


def _outputs(size: int, latent: int) -> dict[str, tuple[str, list[int]]]:
    """Output name -> datatype and shape; -1 is the number of images."""
    return {
        "score": ("FP32", [-1]),
        "p_value": ("FP64", [-1]),
        "is_anomaly": ("BOOL", [-1]),
        "reconstruction_error": ("FP32", [-1]),
        "embedding": ("FP32", [-1, latent]),
        "reconstruction": ("FP32", [-1, size, size]),
    }


def _parse(deadline: Deadline | None, body: bytes, detector: Detector) -> tuple[schemas.InferRequest, NDArray[np.uint8]]:
    """The request and its images [N, S, S]. Raises BadRequest or OutOfRange."""
    if body.count(b"[") + body.count(b"{") > 64 + len(body) // 16:  # an empty list in 3 bytes of JSON takes 56 bytes of memory
        raise BadRequest("The body has more nested lists than images need.")
    try:
        infer_request = schemas.InferRequest.model_validate_json(body)
    except ValidationError as error:
        raise from_validation_error(error) from None
    return infer_request, _pixels(infer_request.inputs[0], detector.image_size)


def _pixels(tensor: schemas.InferInput, size: int) -> NDArray[np.uint8]:
    """The data of an input tensor as uint8 [N, size, size]. Raises OutOfRange."""
    count, *rest = tensor.shape
    if rest not in ([size, size], [size * size], [1, size, size]):
        raise OutOfRange(f"shape must be [N, {size}, {size}] or [N, {size * size}].")
    numbers, shape = _flatten(tensor.data)
    try:
        pixels = bytes(numbers) if set(map(type, numbers)) == {int} else b""
    except (ValueError, OverflowError):
        pixels = b""
    if not pixels:
        raise OutOfRange("data must hold whole numbers from 0 to 255, in one list or in lists of equal lengths.")
    if len(numbers) != math.prod(tensor.shape) or (len(shape) > 1 and shape != tensor.shape):
        raise OutOfRange("data and shape do not agree.")
    return np.frombuffer(pixels, np.uint8).reshape(count, size, size)


def _flatten(data: list[Any]) -> tuple[list[Any], list[int]]:
    """Flatten nested lists of equal lengths; returns the elements and the shape. Unequal lengths give no elements.

    numpy.array is not safe here: for a list with one long string it allocates that length for every element.
    """
    shape = [len(data)]
    while data and set(map(type, data)) == {list}:
        lengths = set(map(len, data))
        if len(lengths) > 1:
            return [], shape
        shape.append(lengths.pop())
        data = list(chain.from_iterable(data))
    return data, shape


def _output_names(infer_request: schemas.InferRequest) -> Sequence[str]:
    """The names of the requested outputs; by default all except the reconstruction."""
    if infer_request.outputs:
        return [output.name for output in infer_request.outputs]
    return [name for name in _outputs(0, 0) if name != "reconstruction"]


def _response(deadline: Deadline | None, infer_request: schemas.InferRequest, result: InferenceResult) -> Response:
    """The requested outputs as JSON. Raises OutOfRange for an alpha that the calibration cannot give."""
    card, detections = result.bundle.card, result.detections
    alpha = infer_request.parameters.alpha if infer_request.parameters else None
    rate = None if alpha is None else check_rate("parameters.alpha", alpha)
    columns: dict[str, NDArray[Any]] = {
        "score": detections.scores,
        "p_value": detections.p_values,
        "is_anomaly": detections.scores > decide(result, Options(alpha=rate)).threshold,
        "reconstruction_error": detections.reconstruction_errors,
        "embedding": detections.embeddings,
    }
    if detections.reconstructions is not None:
        columns["reconstruction"] = detections.reconstructions
    tensors = [_tensor(name, columns[name]) for name in _output_names(infer_request)]
    content: Entry = {"model_name": card.name, "model_version": str(card.version), "outputs": tensors}
    if infer_request.id is not None:
        content["id"] = infer_request.id
    return Response(responses.json_bytes(content), media_type=JSON)


def _tensor(name: str, values: NDArray[Any]) -> Entry:
    datatype, _ = _outputs(0, 0)[name]
    return {"name": name, "datatype": datatype, "shape": list(values.shape), "data": values.ravel().tolist()}
