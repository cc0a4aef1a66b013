"""The Open Inference Protocol, version 2, over REST: the detector for clients of any model server.

Images come as a tensor of pixels or of image files, and are scored as /score scores arrays and uploads. Scores, p-values,
verdicts and other outputs are returned as tensors. Source: https://github.com/kserve/open-inference-protocol.
"""

import asyncio
import time
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from app.detection.detector import Detector, stack_features
from app.detection.imaging.decode import choose_preprocess
from app.detection.imaging.errors import ImageError
from app.serving import infer_schemas as schemas
from app.serving.api import responses
from app.serving.api.input_tensors import InferInputs, TensorLimits, read_inputs, split_body
from app.serving.api.openapi import API_KEY, BINARY, WATCH, infer_problems, json_body
from app.serving.api.output_tensors import (
    HEADER_LENGTH,
    OCTETS,
    SCORING_OUTPUTS,
    Output,
    count_numbers,
    output_shapes,
    render_outputs,
    requested_alpha,
    requested_outputs,
)
from app.serving.api.query import NPY, read_options
from app.serving.api.uploads import Uploads
from app.serving.engine.admission import Admission
from app.serving.engine.decoders import DecodeOptions
from app.serving.engine.inference import Inference, InferenceResult, Job, RequestedOutputs
from app.serving.engine.models import Models
from app.serving.engine.thread_stage import Stages
from app.serving.errors import NotFound, TooLarge, Unavailable, from_image_error
from app.serving.http.body import declared_length, read_body
from app.serving.http.shutdown import Draining
from app.serving.settings import Settings
from app.serving.telemetry.metrics import Metrics

_INLINE_BYTES, _INLINE_BINARY_BYTES = 16 * 1024, 256 * 1024  # larger JSON and binary data are read on a thread
_INLINE_NUMBERS = 4096  # of a response in JSON; more are written on a thread
_BINARY_SPEED = 64  # binary numbers are written in the time of one in JSON
_JSON_BYTE_S, _BINARY_BYTE_S, _NUMBER_S = 50e-9, 5e-9, 100e-9  # cost of reading a byte, of writing a number
_PLATFORMS = {"onnx": "onnxruntime_onnx", "torch": "pytorch_state_dict"}  # by the detector's runtime
_EXTENSIONS = ["binary_tensor_data", "parameters", "model_configuration"]
_INPUT = ("images", "UINT8")
_INPUT_PARAMETERS: dict[str, str | int] = {
    "content_type": "np",
    "datatypes": "UINT8 and other integers, FP16, FP32, FP64, BYTES (image files)",
    "integer_max": 255,
    "float_max": 1,
}


class OpenInference:
    """The endpoints under /v2."""

    def __init__(
        self,
        models: Models,
        uploads: Uploads,
        admission: Admission,
        stages: Stages,
        draining: Draining,
        metrics: Metrics,
        settings: Settings,
    ) -> None:
        self._models = models
        self._uploads = uploads
        self._admission = admission
        self._stages = stages
        self._draining = draining
        self._metrics = metrics
        self._settings = settings
        self.router = APIRouter(prefix="/v2", tags=["open inference"])
        self._add_server_routes()
        self._add_model_routes()

    def _add_server_routes(self) -> None:
        get = self.router.get
        get("", operation_id="v2_server_metadata", dependencies=API_KEY, responses=infer_problems(401))(self.server_metadata)
        get("/", include_in_schema=False)(self.server_metadata)
        get("/health/live", operation_id="v2_server_live")(self.server_live)
        get("/health/ready", operation_id="v2_server_ready", responses=infer_problems(503))(self.server_ready)
        index: dict[str, Any] = {"dependencies": API_KEY, "responses": infer_problems(401)}
        self.router.post("/repository/index", operation_id="v2_repository_index", **index)(self.repository_index)

    def _add_model_routes(self) -> None:
        model, version = "/models/{model}", "/models/{model}/versions/{version}"
        known = infer_problems(401, 404)
        get = self.router.get
        get(model, operation_id="v2_model_metadata", dependencies=API_KEY, responses=known)(self.model_metadata)
        get(version, operation_id="v2_version_metadata", dependencies=API_KEY, responses=known)(self.version_metadata)
        get(f"{model}/config", operation_id="v2_model_config", dependencies=API_KEY, responses=known)(self.model_config)
        get(f"{version}/config", operation_id="v2_version_config", dependencies=API_KEY, responses=known)(self.version_config)
        get(f"{model}/ready", operation_id="v2_model_ready", dependencies=API_KEY, responses=known)(self.model_ready)
        get(f"{version}/ready", operation_id="v2_version_ready", dependencies=API_KEY, responses=known)(self.version_ready)
        infer: dict[str, Any] = {
            "dependencies": API_KEY,
            "response_model": schemas.InferResponse,
            "responses": {
                200: {"content": {OCTETS: {"schema": BINARY}}},
                **infer_problems(400, 401, 404, 408, 413, 415, 422, 503, 504),
            },
            "openapi_extra": {**json_body(schemas.InferRequest), "parameters": [WATCH]},
        }
        self.router.post(f"{model}/infer", operation_id="v2_model_infer", **infer)(self.model_infer)
        self.router.post(f"{version}/infer", operation_id="v2_version_infer", **infer)(self.version_infer)

    async def server_metadata(self, request: Request) -> schemas.InferServer:
        """Name, version and extensions of the server."""
        return schemas.InferServer(name="oddigit", version=request.app.version, extensions=_EXTENSIONS)

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

    async def model_config(self, model: str) -> schemas.InferModelConfig:
        """The configuration of a model, in the form of Triton."""
        return _config(self._find(model).detector)

    async def version_config(self, model: str, version: str) -> schemas.InferModelConfig:
        """The configuration of one version of a model, in the form of Triton."""
        return _config(self._find(model, version).detector)

    async def repository_index(self) -> list[schemas.InferRepositoryModel]:
        """The models in service, the default first."""
        cards = [model.inference.detector.bundle.card for model in self._models]
        return [
            schemas.InferRepositoryModel(name=card.name, version=str(card.version), state="READY", reason="") for card in cards
        ]

    async def model_ready(self, model: str) -> schemas.InferModelReady:
        """Readiness of a model: the one in service is ready."""
        return schemas.InferModelReady(name=self._find(model).detector.bundle.card.name, ready=True)

    async def version_ready(self, model: str, version: str) -> schemas.InferModelReady:
        """Readiness of one version of a model."""
        return schemas.InferModelReady(name=self._find(model, version).detector.bundle.card.name, ready=True)

    async def model_infer(self, model: str, request: Request) -> Response:
        """Score the images of a tensor."""
        return await self._infer(request, self._find(model))

    async def version_infer(self, model: str, version: str, request: Request) -> Response:
        """Score the images of a tensor with one version of a model."""
        return await self._infer(request, self._find(model, version), pinned=True)

    async def _infer(self, request: Request, inference: Inference, *, pinned: bool = False) -> Response:
        """Read, check and score the request's images; `pinned`: only the version that is in service now may answer."""
        settings, loop, detector = self._settings, asyncio.get_running_loop(), inference.detector
        watch = read_options(request.scope["query_string"], ("watch",)).watch == "1"  # the others are parameters in the body
        headers = dict(request.scope["headers"])
        if declared_length(headers) > _INLINE_BYTES + _INLINE_BINARY_BYTES:
            self._stages.pictures.check()  # before the body is received: a refused body is only discarded
        body = bytes(await read_body(request.receive, headers, limit=settings.body_limit))
        deadline, clock = loop.time() + settings.deadline_ms / 1000, time.perf_counter
        started = clock()
        with self._admission:
            text, binary = split_body(body, headers.get(HEADER_LENGTH))
            inputs = await self._read(text, binary, detector, deadline)
            outputs = requested_outputs(inputs.request, pictures=_count(inputs) <= settings.max_pictures)
            required = self._requirements(outputs, _count(inputs), watch=watch, alpha=requested_alpha(inputs.request))
            job = await self._prepare(inputs, required, detector, deadline)
            decoded = clock()
            result = await self._score(inference, job, deadline)
            if pinned and result.bundle is not detector.bundle:  # replaced while the request waited
                raise NotFound(f"Version {detector.bundle.card.version} is no longer in service.")
            inferred = clock()
            response = await self._render(inputs.request, outputs, result, deadline)
        queue_s = max(inferred - decoded - result.infer_s, 0.0)
        seconds = (decoded - started, queue_s, result.infer_s, clock() - inferred)
        self._metrics.record_stages(*seconds)
        response.raw_headers.append(responses.server_timing(*seconds))
        return response

    async def _read(self, text: bytes, binary: memoryview, detector: Detector, deadline: float) -> InferInputs:
        """The request and its images or files; large ones are read on a thread."""
        settings, preprocess = self._settings, detector.bundle.card.preprocess
        limits = TensorLimits(detector.image_size, settings.max_array_images, settings.max_images, preprocess)
        if len(text) <= _INLINE_BYTES and len(binary) <= _INLINE_BINARY_BYTES:
            return read_inputs(None, text, binary, limits)
        cost = len(text) * _JSON_BYTE_S + len(binary) * _BINARY_BYTE_S
        return await self._stages.pictures.run(cost, deadline, read_inputs, text, binary, limits)

    def _requirements(self, outputs: list[Output], images: int, *, watch: bool, alpha: float | None) -> RequestedOutputs:
        """What the detector must compute. Raises TooLarge for too many reconstructions in JSON."""
        names = {output.name for output in outputs}
        most = self._settings.max_pictures
        if images > most and Output("reconstruction", binary=False) in outputs:
            raise TooLarge(f"JSON holds at most {most:,} reconstructions; ask for binary data, or send {NPY} to /reconstruct.")
        verdicts = watch and not SCORING_OUTPUTS.isdisjoint(names)
        return RequestedOutputs(verdicts, reconstructions="reconstruction" in names, alpha=alpha)

    async def _prepare(self, inputs: InferInputs, outputs: RequestedOutputs, detector: Detector, deadline: float) -> Job:
        """The images for the detector; files are decoded and prepared as uploads. Raises the problem of the first bad one."""
        if inputs.images is not None:
            return Job(inputs.images, None, outputs)
        parameters = inputs.request.parameters
        preprocess = choose_preprocess(parameters.preprocess if parameters else "auto", detector.bundle.card.preprocess)
        options = DecodeOptions(preprocess, detector.image_size)
        prepared = []
        for index, result in enumerate(await self._uploads.decode_files(inputs.files, options, deadline)):
            if isinstance(result, ImageError):
                raise from_image_error(result, f"image {index}")
            prepared.append(result)
        return Job(
            np.stack([image.image for image in prepared]), stack_features([image.features for image in prepared]), outputs
        )

    async def _score(self, inference: Inference, job: Job, deadline: float) -> InferenceResult:
        if job.features is None and len(job.images) > self._settings.max_batch_size:
            return await inference.infer_array(job.images, job.outputs, deadline=deadline)
        return await inference.infer(job, deadline=deadline)

    async def _render(
        self, request: schemas.InferRequest, outputs: list[Output], result: InferenceResult, deadline: float
    ) -> Response:
        """The response; one with many numbers is written on a thread."""
        numbers = sum(count_numbers(result, each.name) // (_BINARY_SPEED if each.binary else 1) for each in outputs)
        if numbers <= _INLINE_NUMBERS:
            return render_outputs(None, request, outputs, result)
        cost = numbers * _NUMBER_S
        return await self._stages.pictures.run_next(cost, deadline, render_outputs, request, outputs, result)

    def _find(self, model: str, version: str | None = None) -> Inference:
        """The inference of a model in service. Raises UnknownModel, or NotFound if another version is in service."""
        inference = self._models.find(model).inference
        card = inference.detector.bundle.card
        if version not in (None, str(card.version)):
            raise NotFound(f"There is no such version here; in service is {card.name}, version {card.version}.")
        return inference


def _count(inputs: InferInputs) -> int:
    """The number of images of a request."""
    return len(inputs.files) if inputs.images is None else len(inputs.images)


def _metadata(detector: Detector) -> schemas.InferModel:
    card, size = detector.bundle.card, detector.image_size
    name, datatype = _INPUT
    return schemas.InferModel(
        name=card.name,
        versions=[str(card.version)],
        platform=_PLATFORMS[detector.runtime],
        inputs=[schemas.InferInputMetadata(name=name, datatype=datatype, shape=[-1, size, size], parameters=_INPUT_PARAMETERS)],
        outputs=[
            schemas.InferTensor(name=name, datatype=datatype, shape=shape)
            for name, (datatype, shape) in output_shapes(size, detector.latent_dim).items()
        ],
    )


def _config(detector: Detector) -> schemas.InferModelConfig:
    described = _metadata(detector)
    return schemas.InferModelConfig(
        name=described.name,
        platform=described.platform,
        backend="",
        max_batch_size=0,  # the first dimension is the number of images, and any number is possible
        input=[_config_tensor(tensor) for tensor in described.inputs],
        output=[_config_tensor(tensor) for tensor in described.outputs],
    )


def _config_tensor(tensor: schemas.InferTensor) -> schemas.InferConfigTensor:
    return schemas.InferConfigTensor(name=tensor.name, data_type=f"TYPE_{tensor.datatype}", dims=tensor.shape)
