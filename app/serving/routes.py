"""The endpoints that judge uploads: a request in, an answer out. Each is a `Question`; one way leads through all of them."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from app.detection.bundle import Bundle
from app.detection.conformal import CalibrationError
from app.detection.images import normalise
from app.serving import answers
from app.serving.answers import Entry
from app.serving.errors import OutOfRange, TooLarge
from app.serving.inference import Inference, Job, Outcome, Wanted
from app.serving.negotiate import JSON, NPY, PNG, Options, choose, read_options
from app.serving.settings import Settings
from app.serving.upload import Upload, Uploads, refusal

_INLINE_IMAGES = 64  # answers for more images are built on a thread


@dataclass(frozen=True)
class Question:
    """What an endpoint asks of the detector, and how it words the outcome."""

    wanted: Wanted
    offers: tuple[str, ...]  # media types, the default first
    entries: Callable[[Upload, Outcome, float], Iterable[Entry]]
    head: Callable[[Bundle, float, float], Entry]
    array: Callable[[Outcome], NDArray[Any]]


class Endpoints:
    """The server's questions, bound to one inference and one set of settings."""

    def __init__(self, inference: Inference, uploads: Uploads, settings: Settings) -> None:
        self._inference = inference
        self._uploads = uploads
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

    async def _answer(self, request: Request, question: Question) -> Response:
        options = read_options(request.scope["query_string"])
        media = choose(request.headers.get("accept", ""), question.offers)
        size = self._inference.detector.image_size
        upload = await self._uploads.read(request, options.preprocess, size)
        self._check(upload, question, media)
        if upload.array is not None:
            outcome = await self._inference.judge_array(upload.array, question.wanted)
        else:
            outcome = await self._inference.judge(Job(upload.images, question.wanted))
        if len(upload.shown) <= _INLINE_IMAGES and not question.wanted.error_maps:
            return _word(request, question, media, upload, outcome, options)
        return await asyncio.to_thread(_word, request, question, media, upload, outcome, options)

    def _check(self, upload: Upload, question: Question, media: str) -> None:
        if media != JSON and upload.failed:
            raise refusal([problem for _, problem in upload.failed.values()])
        if question.wanted.error_maps and media != NPY and len(upload.shown) > self._settings.max_pictures:
            raise TooLarge(
                f"At most {self._settings.max_pictures:,} images are answered with pictures; "
                f"ask with Accept: {NPY} or send fewer."
            )


def _word(request: Request, question: Question, media: str, upload: Upload, outcome: Outcome, options: Options) -> Response:
    """The outcome in the media type that was chosen."""
    if media == NPY:
        return Response(answers.npy(question.array(outcome)), media_type=NPY)
    if media == PNG:
        return Response(answers.sheet(_seen(upload), outcome.detections), media_type=PNG)
    alpha, threshold = _threshold(outcome.bundle, options.alpha)
    results = list(question.entries(upload, outcome, threshold))
    for index, (name, problem) in sorted(upload.failed.items()):
        error = problem.body(request.scope["path"], request.scope["state"]["request_id"])
        results.insert(index, {"name": name, "error": error})
    return Response(
        answers.json_bytes({**question.head(outcome.bundle, alpha, threshold), "results": results}), media_type=JSON
    )


def _threshold(bundle: Bundle, alpha: float | None) -> tuple[float, float]:
    if alpha is None:
        return bundle.card.alpha, bundle.card.threshold
    try:
        return alpha, bundle.calibration.threshold(alpha)
    except CalibrationError as error:
        raise OutOfRange(str(error)) from None


def _seen(upload: Upload) -> NDArray[np.float32]:
    """What the network saw: float32 [N, 1, S, S] in [-1, 1]."""
    return upload.images if upload.array is None else normalise(upload.array)


def _model_head(bundle: Bundle, alpha: float, threshold: float) -> Entry:
    return {"model": answers.model_entry(bundle)}


def _score_head(bundle: Bundle, alpha: float, threshold: float) -> Entry:
    return {"model": answers.model_entry(bundle), "alpha": alpha, "threshold": threshold}


_SCORE = Question(
    wanted=Wanted(),
    offers=(JSON, NPY),
    entries=lambda upload, outcome, threshold: answers.score_entries(upload.shown, outcome.detections, threshold),
    head=_score_head,
    array=lambda outcome: outcome.detections.scores,
)
_EMBED = Question(
    wanted=Wanted(),
    offers=(JSON, NPY),
    entries=lambda upload, outcome, _: answers.embed_entries(upload.shown, outcome.detections),
    head=_model_head,
    array=lambda outcome: outcome.detections.embeddings,
)
_RECONSTRUCT = Question(
    wanted=Wanted(reconstructions=True, error_maps=True),
    offers=(JSON, PNG, NPY),
    entries=lambda upload, outcome, _: answers.reconstruct_entries(upload.shown, _seen(upload), outcome.detections),
    head=_model_head,
    array=lambda outcome: answers.unit_range(outcome.detections),
)
