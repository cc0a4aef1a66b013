import asyncio
import math

import numpy as np
import pytest
from strokes import stroke_images

from app.detection.detector import Detector
from app.detection.imaging.decode import decode_image, encode_png, plain_scanlines
from app.serving.engine.inference import Inference, Job, NotLoaded, RequestedOutputs
from app.serving.engine.thread_stage import ThreadStage

PIXELS = stroke_images(30, seed=9)
IMAGES = PIXELS
NO_IMAGES = np.empty((0, 28, 28), np.uint8)


@pytest.fixture(scope="module")
def detector(tiny_bundle):
    """The tiny bundle on the processor."""
    return Detector(tiny_bundle, "cpu")


def job(images, wanted=RequestedOutputs()):  # noqa: B008 - immutable
    """A request for images that were left as they came."""
    return Job(images=images, features=None, outputs=wanted)


def answered(detector, question, max_batch_size=8):
    """What `question`, a function of an inference at work, comes to."""

    async def ask():
        arrays = ThreadStage("arrays", deadline_s=60)
        inference = Inference(max_batch_size=max_batch_size, arrays=arrays)
        if detector is not None:
            inference.set_model(detector)
        try:
            return await question(inference)
        finally:
            arrays.close()

    return asyncio.run(ask())


def test_requests_that_wait_together_get_what_each_would_alone(detector):
    """Sizes, wants and order may differ: every job has its own images' outcome."""
    sizes = [1, 3, 1, 12, 2, 1, 9, 1]
    stops = np.cumsum(sizes)
    wants = [RequestedOutputs(reconstructions=index % 2 == 0, error_maps=index % 3 == 0) for index in range(len(sizes))]
    jobs = [job(IMAGES[stop - size : stop], want) for stop, size, want in zip(stops, sizes, wants, strict=True)]
    outcomes = answered(
        detector, lambda inference: asyncio.gather(*(inference.infer(waiting, deadline=math.inf) for waiting in jobs))
    )
    expected = detector.detect(IMAGES)
    for outcome, stop, size, want in zip(outcomes, stops, sizes, wants, strict=True):
        np.testing.assert_allclose(outcome.detections.scores, expected.scores[stop - size : stop], rtol=1e-5)
        assert outcome.bundle is detector.bundle
        assert outcome.detections.reconstructions is not None or not want.reconstructions
        assert outcome.detections.error_maps is not None or not want.error_maps


def test_plain_pngs_are_decoded_with_their_batch(detector):
    """Each job gets its own picture back, as it would alone; jobs with images may stand between them."""
    shifted = np.roll(IMAGES[:6], (0, 5), (1, 2))
    files = [encode_png(image) for image in (*IMAGES[:2], *shifted[2:4], 255 - IMAGES[4])]
    alone = [decode_image(file) for file in files]
    wanted = RequestedOutputs(verdicts=True, reconstructions=True)
    jobs = [Job(NO_IMAGES, None, wanted, plain_scanlines(file)) for file in files]
    jobs.insert(2, job(IMAGES[5:8], wanted))
    results = answered(
        detector,
        lambda inference: asyncio.gather(*(inference.infer(waiting, deadline=math.inf) for waiting in jobs)),
        max_batch_size=64,
    )
    np.testing.assert_allclose(results[2].detections.scores, detector.detect(IMAGES[5:8]).scores, rtol=1e-5)
    assert results.pop(2).decoded is None
    for result, expected in zip(results, alone, strict=True):
        assert np.array_equal(result.decoded.image, expected.image)
        assert (result.decoded.preprocess, result.decoded.warnings) == (expected.preprocess, expected.warnings)
        score = detector.detect(expected.image[None]).scores
        np.testing.assert_allclose(result.detections.scores, score, rtol=1e-5)
    assert any(each.preprocess for each in alone) and any(each.warnings for each in alone)


def test_an_array_gets_what_its_images_get(detector):
    """Bulk and single images take different ways to the same scores; chunks leave no seam."""
    many = np.concatenate([PIXELS] * 150)  # 4,500: more than two chunks
    outcome = answered(
        detector, lambda inference: inference.infer_array(many, RequestedOutputs(error_maps=True), deadline=math.inf)
    )
    scores = outcome.detections.scores.reshape(150, 30)
    np.testing.assert_allclose(scores, np.tile(detector.detect(IMAGES).scores, (150, 1)), rtol=1e-5)
    assert outcome.detections.error_maps.shape == (4500, 28, 28)
    assert outcome.detections.reconstructions is None


def test_the_observer_is_told_of_each_pass_and_of_its_verdicts(detector):
    """Of a mixed batch the images whose answers judge are named, in their order; of one without verdicts none."""
    told = []

    async def ask():
        arrays = ThreadStage("arrays", deadline_s=60)
        inference = Inference(max_batch_size=64, arrays=arrays, observer=lambda *what: told.append(what))
        inference.set_model(detector)
        wants = [
            RequestedOutputs(verdicts=True),
            RequestedOutputs(),
            RequestedOutputs(verdicts=True, reconstructions=True),
        ]
        parts = [IMAGES[:2], IMAGES[2:5], IMAGES[5:6]]
        jobs = [job(images, want) for images, want in zip(parts, wants, strict=True)]
        outcomes = await asyncio.gather(*(inference.infer(waiting, deadline=math.inf) for waiting in jobs))
        await inference.infer(jobs[1], deadline=math.inf)
        await inference.infer_array(PIXELS[:4], RequestedOutputs(error_maps=True), deadline=math.inf)
        arrays.close()
        return outcomes

    first, _, third = asyncio.run(ask())
    assert [(bundle, images) for bundle, images, _ in told] == [(detector.bundle, count) for count in (6, 3, 4)]
    judged = [None if seen is None else seen.scores.tolist() for _, _, seen in told]
    assert judged == [[*first.detections.scores, *third.detections.scores], None, None]


def test_without_a_detector_nothing_is_judged():
    """Until one is in service, every question says that there is none."""
    for question in (
        lambda inference: inference.infer(job(IMAGES[:1]), deadline=math.inf),
        lambda inference: inference.infer_array(PIXELS, RequestedOutputs(), deadline=math.inf),
    ):
        with pytest.raises(NotLoaded):
            answered(None, question)


def test_another_detector_takes_over_between_batches(tiny_bundle, detector):
    """What is asked after the change is answered by the new one; each outcome names its own bundle."""
    other = Detector(tiny_bundle, "cpu")

    async def change(inference):
        before = await inference.infer(job(IMAGES[:2]), deadline=math.inf)
        inference.set_model(other)
        return before, await inference.infer(job(IMAGES[:2]), deadline=math.inf)

    before, after = answered(detector, change)
    assert np.array_equal(before.detections.scores, after.detections.scores)
    assert after.bundle is other.bundle


def test_a_job_whose_turn_comes_too_late_is_not_run(detector):
    """After its deadline a job is a TimeoutError; those beside it are answered."""

    async def both(inference):
        now = asyncio.get_running_loop().time()
        jobs = [inference.infer(job(IMAGES[:1]), deadline=now + shift) for shift in (-1, 60)]
        return await asyncio.gather(*jobs, return_exceptions=True)

    late, early = answered(detector, both)
    assert isinstance(late, TimeoutError)
    assert len(early.detections.scores) == 1
