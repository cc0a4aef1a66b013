"""The endpoints that judge uploads: a request in, an answer out. Each is an `EndpointSpec`; one way leads through all."""

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from app.detection.bundle import Bundle
from app.detection.conformal import CalibrationError, benjamini_hochberg
from app.serving.api import responses as answers
from app.serving.api.query import JSON, NPY, PNG, Options, choose, read_options
from app.serving.api.responses import Entry
from app.serving.api.uploads import Body, Upload, Uploads, refusal
from app.serving.engine.admission import Admission
from app.serving.engine.inference import Inference, InferenceResult, Job, RequestedOutputs
from app.serving.errors import DeadlinePassed, OutOfRange, TooLarge
from app.serving.settings import Settings
from app.serving.telemetry.metrics import Metrics

_INLINE_IMAGES = 64  # answers for more images are built on a thread


@dataclass(frozen=True)
class EndpointSpec:
    """What an endpoint asks of the detector, and how it words the outcome."""

    wanted: RequestedOutputs
    offers: tuple[str, ...]  # media types, the default first
    entries: Callable[[Upload, InferenceResult, float], Iterable[Entry]]
    head: Callable[[Bundle, "Decision"], Entry]
    array: Callable[[InferenceResult], NDArray[Any] | None]


class Endpoints:
    """The server's questions, bound to what answers them."""

    def __init__(
        self, inference: Inference, uploads: Uploads, admission: Admission, metrics: Metrics, settings: Settings
    ) -> None:
        self._inference = inference
        self._uploads = uploads
        self._admission = admission
        self._arrays = Admission(max_waiting=settings.max_arrays, deadline_s=math.inf)
        self._metrics = metrics
        self._settings = settings

    async def score(self, request: Request) -> Response:
        """How odd is this image? Anomaly score, p-value and verdict, an entry an image."""
        return await self._answer(request, _SCORE)

    async def embed(self, request: Request) -> Response:
        """Where does this image lie in the latent plane?"""
        return await self._answer(request, _EMBED)

    async def reconstruct(self, request: Request) -> Response:
        """What does the network make of this image, and where do the two differ?"""
        return await self._answer(request, _RECONSTRUCT)

    async def _answer(self, request: Request, question: EndpointSpec) -> Response:
        options = read_options(request.scope["query_string"])
        headers = dict(request.scope["headers"])  # a third of what the framework's own look-ups cost
        media = choose(headers.get(b"accept", b"").decode("latin-1"), question.offers)
        body = await self._uploads.receive(request, headers)
        try:
            with self._arrays if len(body.data) > self._settings.max_body_bytes else self._admission:
                return await self._answer_body(request, question, media, body, options)
        except TimeoutError:
            raise late(self._settings) from None

    async def _answer_body(
        self, request: Request, question: EndpointSpec, media: str, body: Body, options: Options
    ) -> Response:
        clock = time.perf_counter  # uvloop's own clock stands still within a round
        deadline = asyncio.get_running_loop().time() + self._settings.deadline_ms / 1000
        began = clock()
        upload = await self._uploads.decode(body, options.preprocess, self._inference.detector.image_size)
        self._check(upload, question, media)
        decoded = clock()
        if upload.array is not None:
            outcome = await self._inference.infer_array(upload.array, question.wanted)
        else:
            outcome = await self._inference.judge(Job(upload.images, upload.features, question.wanted), deadline=deadline)
        judged = clock()
        if len(upload.shown) <= _INLINE_IMAGES and not question.wanted.error_maps:
            response = _word(request, question, media, upload, outcome, options)
        else:
            response = await asyncio.to_thread(_word, request, question, media, upload, outcome, options)
        times = (decoded - began, max(judged - decoded - outcome.infer_s, 0.0), outcome.infer_s, clock() - judged)
        self._metrics.record_stages(*times)
        response.raw_headers.append((b"server-timing", answers.server_timing(*times)))
        return response

    def _check(self, upload: Upload, question: EndpointSpec, media: str) -> None:
        if media != JSON and upload.failed:
            raise refusal([problem for _, problem in upload.failed.values()])
        pictures, rows = self._settings.max_pictures, self._settings.max_images
        most = {JSON: pictures, PNG: min(pictures, rows)}.get(media, math.inf)
        if question.wanted.error_maps and len(upload.shown) > most:
            raise TooLarge(f"At most {most:,} images are answered as {media}; ask with Accept: {NPY} or send fewer.")


def late(settings: Settings) -> DeadlinePassed:
    """What a question is told whose time was up."""
    return DeadlinePassed(f"The question was not answered within {settings.deadline_ms:g} ms; the server is busy.")


def _word(
    request: Request, question: EndpointSpec, media: str, upload: Upload, outcome: InferenceResult, options: Options
) -> Response:
    """The outcome in the media type that was chosen."""
    if media == NPY:
        array = question.array(outcome)
        assert array is not None  # every endpoint asks for the arrays that it answers with
        return Response(answers.npy(array), media_type=NPY)
    if media == PNG:
        return Response(answers.sheet(_seen(upload), outcome.detections), media_type=PNG)
    verdict = verdict_of(outcome, options)
    results = list(question.entries(upload, outcome, verdict.threshold))
    for index, (name, problem) in sorted(upload.failed.items()):
        error = problem.body(request.scope["path"], request.scope["state"]["request_id"])
        results.insert(index, {"name": name, "error": error})
    return Response(answers.json_bytes({**question.head(outcome.bundle, verdict), "results": results}), media_type=JSON)


class Decision(NamedTuple):
    """What the images of one answer are judged by."""

    alpha: float
    threshold: float
    fdr: float | None = None


def verdict_of(outcome: InferenceResult, options: Options) -> Decision:
    """By what alpha and threshold the images are judged. Raises OutOfRange where the calibration is too small for it."""
    bundle = outcome.bundle
    if options.fdr is not None:
        return _discoveries(outcome, options.fdr)
    if options.alpha is None:
        return Decision(bundle.card.alpha, bundle.card.threshold)
    try:
        return Decision(options.alpha, bundle.calibration.threshold(options.alpha))
    except CalibrationError as error:
        raise OutOfRange(str(error)) from None


def _discoveries(outcome: InferenceResult, fdr: float) -> Decision:
    """The alpha and the threshold that control the false discovery rate over this answer's images."""
    detections, calibration = outcome.detections, outcome.bundle.calibration
    alpha = benjamini_hochberg(detections.p_values, fdr)
    try:
        threshold = calibration.threshold(alpha)
    except CalibrationError:  # no p-value is that small: nothing is called an anomaly
        threshold = float(max(detections.scores.max(), calibration.scores[-1]))
    return Decision(alpha, threshold, fdr)


def _seen(upload: Upload) -> NDArray[np.uint8]:
    """The network's input: uint8 [N, S, S]."""
    return upload.images if upload.array is None else upload.array


def _model_head(bundle: Bundle, verdict: Decision) -> Entry:
    return {"model": answers.model_entry(bundle)}


def _score_head(bundle: Bundle, verdict: Decision) -> Entry:
    head: Entry = {"model": answers.model_entry(bundle), "alpha": verdict.alpha, "threshold": verdict.threshold}
    return head if verdict.fdr is None else {**head, "fdr": verdict.fdr}


_SCORE = EndpointSpec(
    wanted=RequestedOutputs(verdicts=True),
    offers=(JSON, NPY),
    entries=lambda upload, outcome, threshold: answers.score_entries(upload.shown, outcome.detections, threshold),
    head=_score_head,
    array=lambda outcome: outcome.detections.scores,
)
_EMBED = EndpointSpec(
    wanted=RequestedOutputs(),
    offers=(JSON, NPY),
    entries=lambda upload, outcome, _: answers.embed_entries(upload.shown, outcome.detections),
    head=_model_head,
    array=lambda outcome: outcome.detections.embeddings,
)
_RECONSTRUCT = EndpointSpec(
    wanted=RequestedOutputs(reconstructions=True, error_maps=True),
    offers=(JSON, PNG, NPY),
    entries=lambda upload, outcome, _: answers.reconstruct_entries(upload.shown, _seen(upload), outcome.detections),
    head=_model_head,
    array=lambda outcome: outcome.detections.reconstructions,
)
