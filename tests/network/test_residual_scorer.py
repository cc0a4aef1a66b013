from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strokes import stroke_images

from app.detection import store
from app.detection.detector import Detector
from app.detection.imaging.decode import normalise
from app.network import residual_scorer as residual
from app.network.autoencoder import Layers
from app.network.residual_scorer import BANDS, ResidualScorer, near

CPU = torch.device("cpu")
IMAGES = stroke_images(24, seed=11)


@pytest.fixture(scope="module")
def bundle(shipped_store):
    """The shipped detector, whose scorer was fitted on the real images."""
    return store.load(store.find(shipped_store, "mnist"))


@pytest.fixture(scope="module")
def scorer(bundle):
    assert isinstance(bundle.scorer, ResidualScorer)
    return bundle.scorer


def through(bundle, images):
    """Images, reconstructions and embeddings, as a scorer takes them."""
    flat, layers = normalise(images).reshape(len(images), -1), Layers(bundle.model, CPU)
    embeddings = layers.encode(flat)
    return flat, layers.decode(embeddings), embeddings


def test_the_median_normal_image_scores_one(bundle):
    """So says the scale, and the calibration images, which the scorer has not seen, agree."""
    assert np.median(bundle.calibration.scores) == pytest.approx(1, abs=0.1)


def test_scores_are_positive_and_finite_whatever_the_image(bundle, scorer):
    """Drawings, noise, black, white and images of a single bright pixel."""
    random = np.random.RandomState(0)
    plain = [np.full((1, 28, 28), value, np.uint8) for value in (0, 1, 127, 255)]
    dot = np.zeros((1, 28, 28), np.uint8)
    dot[0, 5, 5] = 255
    images = np.concatenate([IMAGES, random.randint(0, 256, (20, 28, 28)).astype(np.uint8), *plain, dot])
    for score in (scorer.score, scorer.error_map):
        values = score(*through(bundle, images))
        assert np.isfinite(values).all()
        assert (values >= 0).all()
    assert (scorer.score(*through(bundle, images)) > 0).all()


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.floats(-1, 1))
def test_no_place_of_the_plane_makes_a_score_without_meaning(bundle, scorer, x, y, grey):
    """Embeddings far outside of what was fitted, flat images: still a number."""
    image, made = np.full((1, 784), grey, np.float32), np.zeros((1, 784), np.float32)
    for score in (scorer.score, scorer.error_map):
        assert np.isfinite(score(image, made, np.array([[x, y]], np.float32))).all()


def test_a_score_does_not_depend_on_its_company(bundle, scorer):
    """Alone, in another order or among others: an image's score and error map are its own."""
    parts = through(bundle, IMAGES)
    together, maps = scorer.score(*parts), scorer.error_map(*parts)
    order = np.random.RandomState(0).permutation(len(IMAGES))
    np.testing.assert_allclose(scorer.score(*(part[order] for part in parts)), together[order], rtol=1e-5)
    for step in (1, 8):
        for start in range(0, len(IMAGES), step):
            some = [part[start : start + step] for part in parts]
            np.testing.assert_allclose(scorer.score(*some), together[start : start + step], rtol=1e-5)
            np.testing.assert_allclose(scorer.error_map(*some), maps[start : start + step], rtol=1e-4, atol=1e-5)


def test_scoring_changes_nothing(bundle, scorer):
    """The same again gives the same to the bit, and what was handed in is as it was."""
    parts = through(bundle, IMAGES)
    copies = [part.copy() for part in parts]
    assert np.array_equal(scorer.score(*parts), scorer.score(*parts))
    assert all(np.array_equal(part, copy) for part, copy in zip(parts, copies, strict=True))


def test_a_blank_page_is_no_digit(bundle, scorer):
    """What the mean squared error takes for the most ordinary of digits is flagged here."""
    parts = through(bundle, np.zeros((1, 28, 28), np.uint8))
    assert scorer.score(*parts)[0] > bundle.card.threshold
    assert float(((parts[0] - parts[1]) ** 2).mean()) < 0.3


def test_a_larger_residual_in_the_same_direction_is_odder_by_energy(bundle, scorer):
    """The energies of all bands grow with the residual's size, once it is beyond what is usual; the ink grows with both."""
    image, made, place = through(bundle, IMAGES)
    sizes = []
    for factor in (2, 4, 8, 16):
        _, bands, _ = scorer.features(made + factor * (image - made), made, place)
        sizes.append(bands[:, :-1])
    assert all((larger > smaller).all() for smaller, larger in pairwise(sizes))


def test_features_have_the_shapes_that_the_network_reads(bundle, scorer):
    """K directions, a band more than there are borders between, and the place in the plane."""
    whitened, bands, z = scorer.features(*through(bundle, IMAGES))
    assert whitened.shape == (len(IMAGES), BANDS[-1])
    assert bands.shape == (len(IMAGES), residual.ENERGIES)
    assert z.shape == (len(IMAGES), 2)
    read = residual.inputs(whitened, bands, z)
    assert read.shape == (len(IMAGES), len(scorer.w1))
    wild = residual.inputs(whitened, bands * 1e6, z * 1e6)[:, BANDS[-1] :]
    assert abs(wild).max() <= 8


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 1000), st.floats(0.01, 100))
def test_neighbourhoods_share_one_image_out(images, regions, seed, spread):
    """The rows of weights sum to one, near or far; numpy and torch agree."""
    random = np.random.RandomState(seed)
    z = (spread * random.normal(size=(images, 2))).astype(np.float32)
    centres = random.normal(size=(regions, 2)).astype(np.float32)
    widths = (random.uniform(size=regions) + 0.1).astype(np.float32)
    weights = near(z, centres, widths)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    assert (weights >= 0).all()
    again = near(*(torch.from_numpy(array) for array in (z, centres, widths)))
    np.testing.assert_allclose(weights, again, rtol=1e-3, atol=1e-5)


def test_an_image_at_a_centre_belongs_to_its_region(scorer):
    """Where a region lies, it speaks loudest for itself, unless another is as near and narrower."""
    weights = near(scorer.centres, scorer.centres, scorer.widths)
    assert (weights.argmax(1) == np.arange(len(scorer.centres))).all()


def test_arrays_there_and_back_are_the_same_scorer(bundle, scorer):
    """What is stored scores to the bit as what was fitted."""
    again = ResidualScorer.from_arrays(scorer.arrays())
    parts = through(bundle, IMAGES)
    assert np.array_equal(again.score(*parts), scorer.score(*parts))
    assert set(scorer.arrays()) == {field.name for field in fields(ResidualScorer)}
    assert all(array.dtype == np.float32 for array in scorer.arrays().values())


@pytest.mark.parametrize("name", [field.name for field in fields(ResidualScorer)])
def test_arrays_that_are_missing_or_not_finite_are_refused(scorer, name):
    """A scorer is whole or none."""
    arrays = scorer.arrays()
    with pytest.raises(KeyError):
        ResidualScorer.from_arrays({key: array for key, array in arrays.items() if key != name})
    for wrong in (np.nan, np.inf):
        with pytest.raises(ValueError, match="not finite"):
            ResidualScorer.from_arrays({**arrays, name: np.full_like(arrays[name], wrong)})


def test_moving_to_a_device_moves_everything(bundle, scorer):
    """A scorer on the device where it is already is the same scorer."""
    moved = scorer.to(torch.device("cpu"))
    parts = through(bundle, IMAGES)
    assert np.array_equal(moved.score(*parts), scorer.score(*parts))
    meta = scorer.to(torch.device("meta"))
    assert all(getattr(meta, field.name).device.type == "meta" for field in fields(ResidualScorer))


def test_the_scale_is_that_of_standard_deviations(bundle, scorer):
    """One standard deviation of the evidence more is a score of about 1.44 more, far from the middle."""
    parts = through(bundle, IMAGES)
    low = scorer.evidence(*parts).max()
    base = replace(scorer, centre=low - 10 * scorer.spread)
    further = replace(scorer, centre=low - 11 * scorer.spread)
    index = scorer.evidence(*parts).argmax()
    assert float(further.score(*parts)[index] - base.score(*parts)[index]) == pytest.approx(1 / np.log(2), rel=1e-3)


def test_the_detector_scores_as_the_scorer_does(bundle, scorer):
    """What the server says is what the scorer says of what the network makes of the image."""
    scores = Detector(bundle, "cpu").detect(normalise(IMAGES)).scores
    np.testing.assert_allclose(scores, scorer.score(*through(bundle, IMAGES)), rtol=1e-4)


def test_tensors_and_arrays_score_alike(bundle, scorer):
    """On a device that computes with torch the numbers are those of the CPU, but for the last digits."""
    parts = through(bundle, IMAGES)
    tensors = ResidualScorer(**{name: torch.from_numpy(array) for name, array in scorer.arrays().items()})
    for name in ("score", "error_map"):
        by_torch = getattr(tensors, name)(*(torch.from_numpy(part) for part in parts))
        assert isinstance(by_torch, torch.Tensor)
        np.testing.assert_allclose(by_torch.numpy(), getattr(scorer, name)(*parts), rtol=1e-4, atol=1e-5)
