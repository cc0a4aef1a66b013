"""The detector for many requests at once: jobs of prepared images in, detections out.

Jobs that wait at the same time share a forward pass in the event loop, and the decoding of their plain PNGs. Arrays are
processed in chunks on a thread.
"""

import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.detection.bundle import Bundle
from app.detection.conformal import images_needed
from app.detection.detector import Detections, Detector, stack_features
from app.detection.imaging.decode import decode_plain_images
from app.detection.imaging.preprocess import PreprocessedImage
from app.serving.engine.batcher import Batcher
from app.serving.engine.thread_stage import Deadline, ThreadStage

_IMAGE_S = 15e-6  # expected time for each image of an array


class NotLoaded(RuntimeError):
    """No detector is in service yet."""


class RequestedOutputs(NamedTuple):
    """The outputs that a response needs besides scores and embeddings, and whether it reports verdicts."""

    verdicts: bool = False  # only images with verdicts are counted in verdict metrics and drift
    reconstructions: bool = False
    error_maps: bool = False
    alpha: float | None = None  # of the verdicts; None is the model's

    def has_verdicts(self, detections: Detections) -> bool:
        """Whether the response will have verdicts: not if the calibration has too few images for `alpha`."""
        if not self.verdicts or self.alpha is None:
            return self.verdicts
        return int(detections.calibration_sizes.min()) >= images_needed(self.alpha)


class Job(NamedTuple):
    """The images of one request."""

    images: NDArray[np.uint8]  # [n, S, S]; n is 0 for a plain PNG
    features: NDArray[np.float32] | None  # upload features [n, K]; None where no image was prepared
    outputs: RequestedOutputs
    scanlines: bytes | None = None  # of a plain PNG, which is decoded with the others of the batch

    @property
    def image_count(self) -> int:
        """The number of images."""
        return len(self.images) if self.scanlines is None else 1


class InferenceResult(NamedTuple):
    """Detections of one job, the bundle that made them, and the seconds that the batch took."""

    bundle: Bundle
    detections: Detections
    infer_s: float  # the forward pass
    decode_s: float = 0.0  # decoding plain PNGs
    decoded: PreprocessedImage | None = None  # the job's own plain PNG


BatchObserver = Callable[[Bundle, int, Detections | None], None]  # bundle, number of images, detections with verdicts


class Inference:
    """Runs jobs on the detector in service. Belongs to one event loop."""

    def __init__(self, *, max_batch_size: int, arrays: ThreadStage, observer: BatchObserver | None = None) -> None:
        """`max_batch_size` in images; `arrays` is the thread that scores arrays; `observer` is called after each pass."""
        self._detector: Detector | None = None
        self._observer = observer
        self._batcher: Batcher[Job, InferenceResult] = Batcher(self._run_batch, max_batch_size=max_batch_size)
        self._arrays = arrays

    @property
    def detector(self) -> Detector:
        """The detector in service. Raises NotLoaded."""
        if self._detector is None:
            raise NotLoaded("The model is not loaded yet.")
        return self._detector

    @property
    def is_loaded(self) -> bool:
        """Whether a detector is in service."""
        return self._detector is not None

    @property
    def queued_images(self) -> int:
        """The number of images that wait for a forward pass."""
        return self._batcher.depth

    def set_model(self, detector: Detector) -> None:
        """Use `detector` from the next batch on."""
        self._detector = detector

    def infer(self, job: Job, *, deadline: float) -> Awaitable[InferenceResult]:
        """The result of `job`, in a batch with other jobs. Raises NotLoaded; TimeoutError after `deadline` (loop time)."""
        return self._batcher.submit(job, job.image_count, deadline=deadline)

    async def infer_array(
        self, images: NDArray[np.uint8], outputs: RequestedOutputs, *, deadline: float, is_begun: bool = False
    ) -> InferenceResult:
        """The result for uint8 images [N, S, S], computed on a thread; `is_begun`: they were prepared on one, too.

        Raises NotLoaded; TimeoutError; Overloaded, unless the work is begun.
        """
        run = self._arrays.run_next if is_begun else self._arrays.run
        result = await run(len(images) * _IMAGE_S, deadline, _run_array, self.detector, images, outputs)
        if self._observer is not None:
            self._observer(result.bundle, len(images), result.detections if outputs.has_verdicts(result.detections) else None)
        return result

    def _run_batch(self, jobs: list[Job]) -> list[InferenceResult]:
        detector = self.detector  # read once: a batch never mixes versions
        began = time.perf_counter()
        decoded = _decode_plain(jobs)
        started = time.perf_counter()
        images = _join_images(jobs, decoded)
        single = len(jobs) == 1
        detections = detector.detect(
            images,
            _join_features(jobs),
            reconstructions=any(job.outputs.reconstructions for job in jobs),
            error_maps=any(job.outputs.error_maps for job in jobs),
        )
        seconds = time.perf_counter() - started
        parts = [detections] if single else _split(detections, jobs)
        if self._observer is not None:
            self._observer(detector.bundle, len(images), _with_verdicts(jobs, detections, parts))
        decode_s = started - began
        return [
            InferenceResult(detector.bundle, part, seconds, decode_s, image) for part, image in zip(parts, decoded, strict=True)
        ]


def _decode_plain(jobs: list[Job]) -> list[PreprocessedImage | None]:
    """The plain PNG of each job; None for other jobs."""
    scanlines = [job.scanlines for job in jobs if job.scanlines is not None]
    images = iter(decode_plain_images(scanlines) if scanlines else ())
    return [None if job.scanlines is None else next(images) for job in jobs]


def _join_images(jobs: list[Job], decoded: list[PreprocessedImage | None]) -> NDArray[np.uint8]:
    """The images of all jobs [N, S, S], the plain PNGs among them."""
    parts = [job.images if plain is None else plain.image[None] for job, plain in zip(jobs, decoded, strict=True)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _split(detections: Detections, jobs: list[Job]) -> list[Detections]:
    """The detections of each job, of a batch that holds the jobs in order."""
    parts, start = [], 0
    for job in jobs:
        stop = start + job.image_count
        parts.append(detections.part(start, stop))
        start = stop
    return parts


def _with_verdicts(jobs: list[Job], batch: Detections, parts: list[Detections]) -> Detections | None:
    """Detections of the jobs whose responses have verdicts, None without any."""
    with_verdicts = [part for job, part in zip(jobs, parts, strict=True) if job.outputs.has_verdicts(part)]
    if len(with_verdicts) == len(parts):
        return batch
    return Detections.join(with_verdicts) if with_verdicts else None


def _join_features(jobs: list[Job]) -> NDArray[np.float32] | None:
    """The features [N, K] of all jobs: rows of NaN for images that were not prepared, None if no image was prepared."""
    if len(jobs) == 1:
        return jobs[0].features
    if all(job.features is None for job in jobs):
        return None
    rows = [[None] * job.image_count if job.features is None else list(job.features) for job in jobs]
    return stack_features([row for part in rows for row in part])


def _run_array(deadline: Deadline, detector: Detector, images: NDArray[np.uint8], outputs: RequestedOutputs) -> InferenceResult:
    started, chunks = time.perf_counter(), []
    for start in range(0, len(images), detector.chunk_size):
        deadline.check()
        chunk = images[start : start + detector.chunk_size]
        chunks.append(detector.detect(chunk, reconstructions=outputs.reconstructions, error_maps=outputs.error_maps))
    return InferenceResult(detector.bundle, Detections.join(chunks), time.perf_counter() - started)
