"""The endpoints /score, /embed, /reconstruct and /inspect: an upload in, a response out. Each is an `EndpointSpec`."""

import asyncio
import math
import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from app.detection.bundle import Bundle
from app.detection.conformal import CalibrationError, benjamini_hochberg, check_images
from app.detection.imaging.decode import choose_preprocess
from app.serving import schemas
from app.serving.api import responses
from app.serving.api.query import DEFAULTS, JSON, NPY, PNG, Options, choose, read_options
from app.serving.api.responses import Entry
from app.serving.api.uploads import INLINE_ARRAY_IMAGES, Body, Upload, Uploads, combine_problems
from app.serving.engine.admission import Admission
from app.serving.engine.inference import Inference, InferenceResult, Job, RequestedOutputs
from app.serving.engine.models import Models
from app.serving.engine.thread_stage import Deadline, Stages
from app.serving.errors import OutOfRange, TooLarge
from app.serving.http.body import BytesResponse
from app.serving.settings import Settings
from app.serving.telemetry.metrics import Metrics

_INLINE_IMAGES = 64  # responses for more images are built on a thread
_PIECE_ENTRIES = 64
_ENTRY_S, _PICTURE_S = 5e-6, 400e-6  # cost of an image in a response


class Decision(NamedTuple):
    """The rule by which images are called anomalies: `p_value <= alpha`."""

    alpha: float
    threshold: float  # of the score, for the same alpha
    fdr: float | None = None


class EndpointSpec:
    """What an endpoint needs from the detector, and how it renders the result. This is /score."""

    outputs = RequestedOutputs(verdicts=True)
    offers: tuple[str, ...] = (JSON, NPY)  # media types, the default first
    response_model: type[BaseModel] = schemas.ScoreResponse  # of the JSON response

    def head(self, bundle: Bundle, decision: Decision) -> Entry:
        """The fields of the JSON response before `results`."""
        head: Entry = {"model": responses.model_entry(bundle), "alpha": decision.alpha, "threshold": decision.threshold}
        if decision.fdr is not None:
            head["fdr"] = decision.fdr
        return head

    def entries(self, upload: Upload, result: InferenceResult, decision: Decision, indices: range) -> list[Entry]:
        """The elements of `results` in the JSON response, for some of the images."""
        preparation = result.bundle.card.preprocess
        return responses.score_entries(upload.infos, result.detections, indices, preparation, decision.alpha)

    def array(self, result: InferenceResult) -> NDArray[np.float32] | None:
        """The array of the .npy response."""
        return result.detections.scores


class _EmbedSpec(EndpointSpec):
    outputs = RequestedOutputs()
    response_model: type[BaseModel] = schemas.EmbedResponse

    def head(self, bundle: Bundle, decision: Decision) -> Entry:
        return {"model": responses.model_entry(bundle)}

    def entries(self, upload: Upload, result: InferenceResult, decision: Decision, indices: range) -> list[Entry]:
        return responses.embed_entries(upload.infos, result.detections, indices)

    def array(self, result: InferenceResult) -> NDArray[np.float32] | None:
        return result.detections.embeddings


class _ReconstructSpec(_EmbedSpec):
    outputs = RequestedOutputs(reconstructions=True, error_maps=True)
    offers = (JSON, PNG, NPY)
    response_model = schemas.ReconstructResponse

    def entries(self, upload: Upload, result: InferenceResult, decision: Decision, indices: range) -> list[Entry]:
        return responses.reconstruct_entries(upload.infos, upload.images, result.detections, indices)

    def array(self, result: InferenceResult) -> NDArray[np.float32] | None:
        return result.detections.reconstructions


class _InspectSpec(EndpointSpec):
    outputs = RequestedOutputs(verdicts=True, reconstructions=True, error_maps=True)
    offers = (JSON,)
    response_model = schemas.InspectResponse

    def entries(self, upload: Upload, result: InferenceResult, decision: Decision, indices: range) -> list[Entry]:
        parts = [spec.entries(upload, result, decision, indices) for spec in (_RECONSTRUCT, _EMBED, _SCORE)]
        return [{**pictures, **embedding, **score} for pictures, embedding, score in zip(*parts, strict=True)]


_SCORE, _EMBED, _RECONSTRUCT, _INSPECT = EndpointSpec(), _EmbedSpec(), _ReconstructSpec(), _InspectSpec()
SPECS = {"/score": _SCORE, "/embed": _EMBED, "/reconstruct": _RECONSTRUCT, "/inspect": _INSPECT}


class _Call(NamedTuple):
    """One request, and the way in which it is answered."""

    request: Request
    spec: EndpointSpec
    media: str  # media type of the response
    options: Options
    inference: Inference
    deadline: float  # time of the event loop


class Endpoints:
    """The four endpoints, with everything that they need."""

    def __init__(
        self,
        models: Models,
        uploads: Uploads,
        admission: Admission,
        stages: Stages,
        metrics: Metrics,
        settings: Settings,
    ) -> None:
        self._models = models
        self._uploads = uploads
        self._admission = admission
        self._large_arrays = Admission(settings.max_arrays)
        self._stages = stages
        self._metrics = metrics
        self._settings = settings
        self._deadline_s = settings.deadline_ms / 1000
        self.by_path = {"/score": self.score, "/embed": self.embed, "/reconstruct": self.reconstruct, "/inspect": self.inspect}

    async def score(self, request: Request) -> Response:
        """Anomaly score, p-value and verdict of each image."""
        return await self._respond(request, _SCORE)

    async def embed(self, request: Request) -> Response:
        """The position of each image in the latent plane."""
        return await self._respond(request, _EMBED)

    async def reconstruct(self, request: Request) -> Response:
        """The network's reconstruction of each image, and a map of where the two differ."""
        return await self._respond(request, _RECONSTRUCT)

    async def inspect(self, request: Request) -> Response:
        """Verdict, embedding and pictures of each image in one response."""
        return await self._respond(request, _INSPECT)

    async def _respond(self, request: Request, spec: EndpointSpec) -> Response:
        query = request.scope["query_string"]
        options = read_options(query) if query else DEFAULTS
        inference = self._models.find(options.model).inference
        headers = dict(request.scope["headers"])  # three times as fast as request.headers
        accept = headers.get(b"accept", b"*/*")
        media = spec.offers[0] if accept == b"*/*" else choose(accept.decode("latin-1"), spec.offers)
        self._admission.check()  # before the body is read: a rejected body is only discarded
        body = await self._uploads.receive(request, headers)
        call = _Call(request, spec, media, options, inference, asyncio.get_running_loop().time() + self._deadline_s)
        with self._admission:
            if body.kind == NPY and len(body.data) > self._settings.max_body_bytes:
                with self._large_arrays:
                    return await self._respond_to_body(call, body)
            return await self._respond_to_body(call, body)

    async def _respond_to_body(self, call: _Call, body: Body) -> Response:
        clock, spec, inference = time.perf_counter, call.spec, call.inference
        started, size = clock(), inference.detector.image_size
        preprocess = choose_preprocess(call.options.preprocess, inference.detector.bundle.card.preprocess)
        decode = self._uploads.decode_array if body.kind == NPY else self._uploads.decode
        upload = await decode(body, preprocess, size, deadline=call.deadline)
        self._check_upload(upload, spec, call.media)
        decoded = clock()
        outputs, options = spec.outputs, call.options
        if options is not DEFAULTS:
            outputs = outputs._replace(verdicts=outputs.verdicts and options.watch == "1", alpha=options.alpha)
        if upload.is_array:
            if call.media == NPY:
                outputs = outputs._replace(error_maps=False)
            is_begun = len(upload.images) > INLINE_ARRAY_IMAGES
            result = await inference.infer_array(upload.images, outputs, deadline=call.deadline, is_begun=is_begun)
        else:
            job = Job(upload.images, upload.features, outputs, upload.scanlines)
            result = await inference.infer(job, deadline=call.deadline)
            upload = upload.decoded(result.decoded)
        inferred = clock()
        if len(upload.infos) <= _INLINE_IMAGES and not spec.outputs.error_maps:
            response = _render_response(None, call, upload, result)
        else:
            stage = self._stages.arrays if upload.is_array else self._stages.pictures
            cost = len(upload.infos) * (_PICTURE_S if spec.outputs.error_maps and call.media != NPY else _ENTRY_S)
            response = await stage.run_next(cost, call.deadline, _render_response, call, upload, result)
        decode_s = decoded - started + result.decode_s
        queue_s = max(inferred - decoded - result.infer_s - result.decode_s, 0.0)
        encode_s = clock() - inferred
        self._metrics.record_stages(decode_s, queue_s, result.infer_s, encode_s)
        response.raw_headers.append(responses.server_timing(decode_s, queue_s, result.infer_s, encode_s))
        return response

    def _check_upload(self, upload: Upload, spec: EndpointSpec, media: str) -> None:
        if media != JSON and upload.failed:
            raise combine_problems([problem for _, problem in upload.failed.values()], len(upload.infos) + len(upload.failed))
        if not spec.outputs.error_maps:
            return
        if media == NPY:
            size = len(upload.infos) * math.prod(upload.images.shape[1:]) * np.dtype(np.float32).itemsize
            if size > (most := self._settings.max_answers_bytes):
                raise TooLarge(f"The response would take {size:,} bytes; at most {most:,} are sent. Send fewer images.")
            return
        most = self._settings.max_pictures if media == JSON else min(self._settings.max_pictures, self._settings.max_images)
        if len(upload.infos) > most:
            hint = f"ask with Accept: {NPY} or send fewer" if NPY in spec.offers else "send fewer"
            raise TooLarge(f"At most {most:,} images are answered as {media}; {hint}.")


def _render_response(deadline: Deadline | None, call: _Call, upload: Upload, result: InferenceResult) -> Response:
    """The result in the media type that was negotiated. Raises TimeoutError after the deadline."""
    body: bytes | memoryview
    with_verdicts = call.spec.outputs.verdicts
    decision = decide(result, call.options if with_verdicts else DEFAULTS, upload)
    if call.media == JSON:
        body = _render_json(deadline, call, upload, result, decision)
    elif call.media == PNG:
        body = responses.contact_sheet(upload.images, result.detections)
    else:
        array = call.spec.array(result)
        assert array is not None  # every endpoint requests the array that it returns
        body = responses.npy(array)
    anomalies = int(np.count_nonzero(result.detections.p_values <= decision.alpha)) if with_verdicts else None
    response = BytesResponse(body, call.media)
    response.raw_headers.append(responses.result_header(len(upload.infos), anomalies))
    return response


def _render_json(deadline: Deadline | None, call: _Call, upload: Upload, result: InferenceResult, decision: Decision) -> bytes:
    """The body of a JSON response."""
    spec = call.spec
    if len(upload.infos) > _INLINE_IMAGES and not upload.failed:
        return _json_in_pieces(deadline, call, upload, result, decision)
    content = spec.head(result.bundle, decision)
    content["results"] = entries = spec.entries(upload, result, decision, range(len(upload.infos)))
    if upload.failed:
        scope = call.request.scope
        for index, (name, problem) in sorted(upload.failed.items()):
            error = problem.body(scope["path"], scope["state"]["request_id"], scope.get("root_path", ""))
            entries.insert(index, {"name": name, "error": error})
    return responses.json_bytes(content)


def _json_in_pieces(
    deadline: Deadline | None, call: _Call, upload: Upload, result: InferenceResult, decision: Decision
) -> bytes:
    """As `_render_json`; other threads can run, and the deadline is checked, between the pieces."""
    spec, count = call.spec, len(upload.infos)
    pieces = [responses.json_bytes({**spec.head(result.bundle, decision), "results": []})[:-2]]
    for start in range(0, count, _PIECE_ENTRIES):
        if deadline is not None:
            deadline.check()
        entries = spec.entries(upload, result, decision, range(start, min(start + _PIECE_ENTRIES, count)))
        pieces += (responses.json_bytes(entries)[1:-1], b",")
    pieces[-1] = b"]}"  # in place of the last comma
    return b"".join(pieces)  # joined, because other threads can run, unlike while a bytearray grows


def decide(result: InferenceResult, options: Options, upload: Upload | None = None) -> Decision:
    """The alpha and threshold that are asked for. Raises OutOfRange: too few calibration images for an image's kind."""
    bundle, sizes = result.bundle, result.detections.calibration_sizes
    if options.fdr is not None:
        return _decide_by_fdr(result, options.fdr)
    if options.alpha is None:
        return Decision(bundle.card.alpha, bundle.card.threshold)
    fewest = int(sizes.argmin())
    try:
        check_images(options.alpha, int(sizes[fewest]))
        return Decision(options.alpha, bundle.calibration.threshold(options.alpha))
    except CalibrationError as error:
        name = upload.infos[fewest].name if upload and not upload.is_array else f"image {fewest}"
        raise OutOfRange(f"{name}: {error}" if len(sizes) > 1 else str(error)) from None


def _decide_by_fdr(result: InferenceResult, fdr: float) -> Decision:
    """The alpha and threshold that control the false discovery rate over the images of this response.

    No image is flagged whose kind has fewer calibration images than a p-value of `alpha` needs, even above the threshold.
    """
    detections, calibration = result.detections, result.bundle.calibration
    alpha = benjamini_hochberg(detections.p_values, fdr)
    try:
        threshold = calibration.threshold(alpha)
    except CalibrationError:  # no p-value is that small: no image is called an anomaly
        threshold = float(max(detections.scores.max(), calibration.scores[-1]))
    return Decision(alpha, threshold, fdr)
