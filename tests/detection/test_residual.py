from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strokes import stroke_images

from app.detection import residual, store
from app.detection.detector import Detector
from app.detection.images import normalise
from app.detection.residual import BANDS, ResidualScorer, near

IMAGES = stroke_images(24, seed=11)


@pytest.fixture(scope="module")
def bundle(shipped_store):
    """The shipped detector, whose scorer was fitted on the real images."""
    return store.load(store.latest(shipped_store, "mnist"))


@pytest.fixture(scope="module")
def scorer(bundle):
    assert isinstance(bundle.scorer, ResidualScorer)
    return bundle.scorer


def through(bundle, images):
    """Images, reconstructions and embeddings, as a scorer takes them."""
    with torch.inference_mode():
        flat = torch.from_numpy(normalise(images)).flatten(1)
        embeddings = bundle.model.encode(flat)
        return flat, bundle.model.decode(embeddings), embeddings


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
        assert torch.isfinite(values).all()
        assert (values >= 0).all()
    assert (scorer.score(*through(bundle, images)) > 0).all()


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.floats(-1, 1))
def test_no_place_of_the_plane_makes_a_score_without_meaning(bundle, scorer, x, y, grey):
    """Embeddings far outside of what was fitted, flat images: still a number."""
    image, made = torch.full((1, 784), grey), torch.zeros(1, 784)
    for score in (scorer.score, scorer.error_map):
        assert torch.isfinite(score(image, made, torch.tensor([[x, y]], dtype=torch.float32))).all()


def test_a_score_does_not_depend_on_its_company(bundle, scorer):
    """Alone, in another order or among others: an image's score and error map are its own."""
    parts = through(bundle, IMAGES)
    together, maps = scorer.score(*parts), scorer.error_map(*parts)
    order = torch.randperm(len(IMAGES), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(scorer.score(*(part[order] for part in parts)), together[order], rtol=1e-4, atol=1e-5)
    for start in range(0, len(IMAGES), 8):
        some = [part[start : start + 8] for part in parts]
        torch.testing.assert_close(scorer.score(*some), together[start : start + 8], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(scorer.error_map(*some), maps[start : start + 8], rtol=1e-4, atol=1e-5)


def test_scoring_changes_nothing(bundle, scorer):
    """The same again gives the same to the bit, and what was handed in is as it was."""
    parts = through(bundle, IMAGES)
    copies = [part.clone() for part in parts]
    assert torch.equal(scorer.score(*parts), scorer.score(*parts))
    assert all(torch.equal(part, copy) for part, copy in zip(parts, copies, strict=True))


def test_a_blank_page_is_no_digit(bundle, scorer):
    """What the mean squared error takes for the most ordinary of digits is flagged here."""
    parts = through(bundle, np.zeros((1, 28, 28), np.uint8))
    assert float(scorer.score(*parts)) > bundle.card.threshold
    assert float((parts[0] - parts[1]).square().mean()) < 0.3


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
    assert wild.abs().max() <= 8


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 1000), st.floats(0.01, 100))
def test_neighbourhoods_share_one_image_out(images, regions, seed, spread):
    """The rows of weights sum to one, near or far; the plane's quick way and the general one agree."""
    random = torch.Generator().manual_seed(seed)
    z = spread * torch.randn(images, 2, generator=random)
    centres = torch.randn(regions, 2, generator=random)
    widths = torch.rand(regions, generator=random) + 0.1
    weights = near(z, centres, widths)
    torch.testing.assert_close(weights.sum(1), torch.ones(images))
    assert (weights >= 0).all()
    nothing = torch.zeros(images, 1), torch.zeros(regions, 1)
    general = near(torch.cat([z, nothing[0]], 1), torch.cat([centres, nothing[1]], 1), widths)
    torch.testing.assert_close(weights, general, rtol=1e-3, atol=1e-5)


def test_an_image_at_a_centre_belongs_to_its_region(scorer):
    """Where a region lies, it speaks loudest for itself, unless another is as near and narrower."""
    weights = near(scorer.centres, scorer.centres, scorer.widths)
    assert (weights.argmax(1) == torch.arange(len(scorer.centres))).all()


def test_arrays_there_and_back_are_the_same_scorer(bundle, scorer):
    """What is stored scores to the bit as what was fitted."""
    again = ResidualScorer.from_arrays(scorer.arrays())
    parts = through(bundle, IMAGES)
    assert torch.equal(again.score(*parts), scorer.score(*parts))
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
    assert torch.equal(moved.score(*parts), scorer.score(*parts))
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
    np.testing.assert_allclose(scores, scorer.score(*through(bundle, IMAGES)).numpy(), rtol=1e-4)
