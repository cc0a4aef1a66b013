from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strokes import stroke_images

from app.detection.detector import Detections, Detector, SelfCheckError
from app.detection.imaging.upload_features import FEATURE_NAMES
from app.detection.model_card import SelfCheck

IMAGES = stroke_images(70, seed=4)


@pytest.fixture(scope="module")
def detector(tiny_bundle):
    """The tiny bundle on the processor."""
    return Detector(tiny_bundle, "cpu")


@settings(max_examples=40)
@given(st.lists(st.integers(0, 69), min_size=1, max_size=70))
def test_an_image_is_judged_alike_in_any_company(detector, rows):
    """Alone, repeated, in any order and any number: the same score, error and embedding, in the order of the batch."""
    everyone, chosen = detector.detect(IMAGES), detector.detect(IMAGES[rows])
    np.testing.assert_allclose(chosen.scores, everyone.scores[rows], rtol=1e-5)
    np.testing.assert_allclose(chosen.reconstruction_errors, everyone.reconstruction_errors[rows], rtol=1e-5)
    np.testing.assert_allclose(chosen.embeddings, everyone.embeddings[rows], rtol=1e-4, atol=1e-6)


def test_p_values_are_those_of_the_calibration(detector):
    """Score and p-value come from the same calibration: they agree on every image at the card's alpha."""
    seen, card = detector.detect(IMAGES), detector.bundle.card
    assert np.array_equal(seen.p_values, detector.bundle.calibration.p_values(seen.scores))
    assert np.array_equal(seen.scores > card.threshold, seen.p_values <= card.alpha)


@pytest.mark.parametrize(("uploads", "expected"), [(None, [True, False]), ("own", [False, True])])
def test_images_of_another_preparation_than_the_calibrations_are_told(tiny_bundle, uploads, expected):
    """Of an unprepared and a prepared image: one of the two is like the images that the detector was calibrated on."""
    bundle = replace(tiny_bundle, card=tiny_bundle.card.model_copy(update={"uploads": uploads}))
    features = np.stack([np.full(len(FEATURE_NAMES), np.nan), np.zeros(len(FEATURE_NAMES))]).astype(np.float32)
    assert Detector(bundle, "cpu").detect(IMAGES[:2], features).calibrated.tolist() == expected


def test_pictures_come_where_they_are_asked_for(detector):
    """Reconstructions and error maps are left out by default, and are images where wanted."""
    plain, full = detector.detect(IMAGES[:3]), detector.detect(IMAGES[:3], reconstructions=True, error_maps=True)
    assert plain.reconstructions is None
    assert plain.error_maps is None
    assert full.reconstructions.shape == IMAGES[:3].shape
    assert full.error_maps.shape == (3, 28, 28)
    assert ((full.reconstructions >= 0) & (full.reconstructions <= 1)).all()
    assert (full.error_maps >= 0).all()
    residuals = 2 * (IMAGES[:3] / 255 - full.reconstructions)  # in [-1, 1] units
    np.testing.assert_allclose(full.reconstruction_errors, (residuals**2).mean((1, 2)), rtol=1e-5)


def test_decoding_an_embedding_gives_the_reconstruction(detector):
    """`decode` is the second half of what `detect` does."""
    seen = detector.detect(IMAGES[:9], reconstructions=True)
    np.testing.assert_allclose(detector.decode(seen.embeddings), seen.reconstructions, atol=1e-5)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_parts_joined_again_are_the_whole(detector, lengths):
    """`join` undoes `part`, whatever the lengths of the parts."""
    whole = detector.detect(IMAGES[: max(sum(lengths), 1)], error_maps=True)
    stops = np.cumsum(lengths).tolist()
    parts = [whole.part(stop - length, stop) for stop, length in zip(stops, lengths, strict=True)]
    joined = Detections.join([*parts, whole.part(stops[-1], len(whole.scores))])
    for column, other in zip(joined, whole, strict=True):
        assert (column is None and other is None) or np.array_equal(column, other)


def test_many_threads_at_once_get_the_answers_of_one(detector):
    """It keeps nothing between calls, so calls may overlap."""
    expected = [detector.detect(IMAGES[i : i + 5]).scores for i in range(60)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: detector.detect(IMAGES[i : i + 5]).scores, range(60)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_detecting_leaves_the_images_as_they_were(detector):
    """The caller's array is read, not written."""
    before = IMAGES[:5].copy()
    detector.detect(IMAGES[:5], reconstructions=True, error_maps=True)
    assert np.array_equal(before, IMAGES[:5])


def test_a_sound_bundle_passes_its_self_check(detector):
    """Nothing is raised where the card's scores come out again."""
    detector.self_check()


@pytest.mark.parametrize("change", [lambda s: s[:-1], lambda s: (s[0] * 1.01, *s[1:]), lambda s: (*s, 1.0), lambda s: ()])
def test_a_bundle_that_does_not_reproduce_its_card_fails_its_self_check(tiny_bundle, change):
    """One score off by a percent, one too few, one too many or none at all: it is not served."""
    check = SelfCheck(seed=0, scores=change(tiny_bundle.card.self_check.scores))
    card = tiny_bundle.card.model_copy(update={"self_check": check})
    with pytest.raises(SelfCheckError, match="not served"):
        Detector(replace(tiny_bundle, card=card), "cpu").self_check()
