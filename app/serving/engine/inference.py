"""The detector at work for many requests at once: prepared images in, outcomes out. Knows no HTTP.

Requests that wait together share a forward pass. Arrays go in chunks on a thread of their own, so that they never hold up
the event loop.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.detection.bundle import Bundle
from app.detection.detector import Detections, Detector, stack_features
from app.serving.engine.batcher import Batcher

_CHUNK = 2048  # images: the largest whose activations stay in a core's cache without costing throughput


class NotLoaded(RuntimeError):
    """There is no detector in service yet."""


class RequestedOutputs(NamedTuple):
    """What an answer is for, and what it needs besides scores."""

    verdicts: bool = False  # it judges its images; only these are counted and watched, each image once
    reconstructions: bool = False
    error_maps: bool = False

    @property
    def extras(self) -> dict[str, bool]:
        """What the detector is asked for."""
        return {name: value for name, value in self._asdict().items() if name != "verdicts"}


class Job(NamedTuple):
    """Images of one request, uint8 [n, S, S], what their preparation saw [n, K], and what the answer needs."""

    images: NDArray[np.uint8]
    features: NDArray[np.float32] | None
    wanted: RequestedOutputs


class InferenceResult(NamedTuple):
    """What the detector said, the bundle that said it, and how long its batch took."""

    bundle: Bundle
    detections: Detections
    infer_s: float


Watcher = Callable[[Bundle, int, Detections | None], None]  # told of every forward pass, its images, and those judged


class Inference:
    """Answers for the detector in service."""

    def __init__(self, *, max_batch_size: int, watcher: Watcher = lambda bundle, images, judged: None) -> None:
        self._detector: Detector | None = None
        self._watcher = watcher
        self._batcher: Batcher[Job, InferenceResult] = Batcher(
            self._run, lambda job: len(job.images), max_batch_size=max_batch_size
        )
        self._bulk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bulk")

    @property
    def detector(self) -> Detector:
        """The detector in service. Raises NotLoaded while there is none."""
        if self._detector is None:
            raise NotLoaded("The model is not loaded yet.")
        return self._detector

    @property
    def queued_images(self) -> int:
        """Images that wait for a forward pass."""
        return self._batcher.depth

    def set_model(self, detector: Detector) -> None:
        """Answer with `detector` from the next batch on."""
        self._detector = detector

    async def judge(self, job: Job, *, deadline: float) -> InferenceResult:
        """The job's outcome, in one batch with whatever else waits. Raises TimeoutError after `deadline` (loop time)."""
        return await self._batcher.submit(job, deadline=deadline)

    async def infer_array(self, pixels: NDArray[np.uint8], wanted: RequestedOutputs) -> InferenceResult:
        """The outcome for uint8 [N, S, S], off the event loop."""
        loop = asyncio.get_running_loop()
        outcome = await loop.run_in_executor(self._bulk, _run_array, self.detector, pixels, wanted)
        self._watcher(outcome.bundle, len(pixels), outcome.detections if wanted.verdicts else None)
        return outcome

    def close(self) -> None:
        self._bulk.shutdown(wait=False, cancel_futures=True)

    def _run(self, jobs: list[Job]) -> list[InferenceResult]:
        detector = self.detector  # read once: a batch never mixes versions
        began = time.perf_counter()
        images = jobs[0].images if len(jobs) == 1 else np.concatenate([job.images for job in jobs])
        wanted = RequestedOutputs(*(any(needs) for needs in zip(*(job.wanted for job in jobs), strict=True)))
        detections = detector.detect(images, _joined_features(jobs), **wanted.extras)
        took = time.perf_counter() - began
        if len(jobs) == 1:
            parts = [detections]
        else:
            stops = np.cumsum([len(job.images) for job in jobs]).tolist()
            parts = [detections.part(stop - len(job.images), stop) for job, stop in zip(jobs, stops, strict=True)]
        self._watcher(detector.bundle, len(images), _judged(jobs, detections, parts))
        return [InferenceResult(detector.bundle, part, took) for part in parts]


def _judged(jobs: list[Job], whole: Detections, parts: list[Detections]) -> Detections | None:
    """What of a batch is verdicts."""
    judged = [part for job, part in zip(jobs, parts, strict=True) if job.wanted.verdicts]
    if len(judged) == len(parts):
        return whole
    return Detections.join(judged) if judged else None


def _joined_features(jobs: list[Job]) -> NDArray[np.float32] | None:
    if len(jobs) == 1:
        return jobs[0].features
    if all(job.features is None for job in jobs):
        return None
    rows = [[None] * len(job.images) if job.features is None else list(job.features) for job in jobs]
    return stack_features([row for part in rows for row in part])


def _run_array(detector: Detector, pixels: NDArray[np.uint8], wanted: RequestedOutputs) -> InferenceResult:
    began = time.perf_counter()
    chunks = [detector.detect(pixels[start : start + _CHUNK], None, **wanted.extras) for start in range(0, len(pixels), _CHUNK)]
    return InferenceResult(detector.bundle, Detections.join(chunks), time.perf_counter() - began)
