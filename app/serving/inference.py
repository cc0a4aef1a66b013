"""The detector at work for many requests at once: prepared images in, outcomes out. Knows no HTTP.

Requests that wait together share a forward pass. Arrays go in chunks on a thread of their own, so that they never hold up
the event loop.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.detection.bundle import Bundle
from app.detection.detector import Detections, Detector
from app.detection.images import normalise
from app.serving.batcher import Batcher
from app.serving.errors import Unavailable

_CHUNK = 2048  # images: the largest whose activations stay in a core's cache without costing throughput


class Wanted(NamedTuple):
    """What an answer needs besides scores and embeddings."""

    reconstructions: bool = False
    error_maps: bool = False


class Job(NamedTuple):
    """Images of one request, float32 [n, 1, S, S], and what its answer needs."""

    images: NDArray[np.float32]
    wanted: Wanted


class Outcome(NamedTuple):
    """What the detector said, and the bundle that said it."""

    bundle: Bundle
    detections: Detections


class Inference:
    """Answers for the detector in service."""

    def __init__(self, *, max_batch_size: int) -> None:
        self._detector: Detector | None = None
        self._batcher: Batcher[Job, Outcome] = Batcher(self._run, lambda job: len(job.images), max_batch_size=max_batch_size)
        self._bulk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bulk")

    @property
    def detector(self) -> Detector:
        """The detector in service. Raises Unavailable while there is none."""
        if self._detector is None:
            raise Unavailable("The model is not loaded yet.", {"retry-after": "1"})
        return self._detector

    def put_in_service(self, detector: Detector) -> None:
        """Answer with `detector` from the next batch on."""
        self._detector = detector

    async def judge(self, job: Job) -> Outcome:
        """The job's outcome, in one batch with whatever else waits."""
        return await self._batcher.submit(job)

    async def judge_array(self, pixels: NDArray[np.uint8], wanted: Wanted) -> Outcome:
        """The outcome for uint8 [N, S, S], off the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._bulk, self._run_array, self.detector, pixels, wanted)

    def close(self) -> None:
        self._bulk.shutdown(wait=False, cancel_futures=True)

    def _run(self, jobs: list[Job]) -> list[Outcome]:
        detector = self.detector  # read once: a batch never mixes versions
        images = jobs[0].images if len(jobs) == 1 else np.concatenate([job.images for job in jobs])
        wanted = Wanted(*(any(needs) for needs in zip(*(job.wanted for job in jobs), strict=True)))
        detections = detector.detect(images, **wanted._asdict())
        if len(jobs) == 1:
            return [Outcome(detector.bundle, detections)]
        stops = np.cumsum([len(job.images) for job in jobs]).tolist()
        return [
            Outcome(detector.bundle, detections.part(stop - len(job.images), stop))
            for job, stop in zip(jobs, stops, strict=True)
        ]

    def _run_array(self, detector: Detector, pixels: NDArray[np.uint8], wanted: Wanted) -> Outcome:
        chunks = [
            detector.detect(normalise(pixels[start : start + _CHUNK]), **wanted._asdict())
            for start in range(0, len(pixels), _CHUNK)
        ]
        return Outcome(detector.bundle, Detections.join(chunks))
