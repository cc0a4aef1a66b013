import numpy as np
import pytest
import torch
from strokes import stroke_images

from app.detection.imaging.decode import normalise
from app.network.autoencoder import Autoencoder, Layers
from app.network.residual_scorer import BANDS, ENERGIES
from app.network.scoring import load_scorer, reconstruction_error


@pytest.fixture(scope="module")
def seen():
    """Images, reconstructions and embeddings of a network that was never trained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = Layers(Autoencoder(), torch.device("cpu"))
    images = normalise(stroke_images(60, seed=3)).reshape(60, -1)
    embeddings = layers.encode(images)
    return images, layers.decode(embeddings), embeddings


def residual_arrays():
    """A residual scorer with three regions and a small network, its numbers drawn from a seed."""
    random = np.random.RandomState(0)
    regions, kept, hidden, bands = 3, BANDS[-1], 8, ENERGIES
    directions = np.linalg.qr(random.normal(size=(784, kept)))[0]
    variance = np.linspace(4, 0.1, kept)
    read = kept + bands + 2
    arrays = {
        "location": np.zeros(2),
        "scale": np.ones(2),
        "centres": random.normal(size=(regions, 2)),
        "widths": np.ones(regions),
        "pixel_mean": random.normal(0, 0.1, (regions, 784)),
        "pixel_std": np.full((regions, 784), 0.3),
        "directions": directions / np.sqrt(variance),
        "variance": variance,
        "mean": random.normal(0, 0.1, (regions, kept)),
        "band_mean": random.normal(0, 0.5, (regions, bands)),
        "band_std": np.ones((regions, bands)),
        "w1": random.normal(0, read**-0.5, (read, hidden)),
        "b1": np.zeros(hidden),
        "w2": random.normal(0, hidden**-0.5, (hidden, hidden)),
        "b2": np.zeros(hidden),
        "w3": random.normal(0, hidden**-0.5, (hidden, 1)),
        "b3": np.zeros(1),
        "centre": np.array(8.0),
        "spread": np.array(2.0),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


ARRAYS = {"mse": {}, "residual": residual_arrays()}


@pytest.fixture(params=ARRAYS)
def scorer(request):
    """Each scorer there is."""
    return load_scorer(request.param, dict(ARRAYS[request.param]))


def some(seen, rows):
    return tuple(tensor[rows] for tensor in seen)


def test_the_reconstruction_error_is_the_mean_squared_residual(seen):
    """It is the training loss of each image: the loss of a batch is its mean."""
    images, made, _ = seen
    errors = reconstruction_error(images, made)
    assert errors.shape == (len(images),)
    assert float(errors.mean()) == pytest.approx(
        float(torch.nn.functional.mse_loss(torch.from_numpy(made), torch.from_numpy(images))), rel=1e-5
    )
    assert float(reconstruction_error(images, images).max()) == 0


def test_a_score_depends_on_its_own_image_alone(scorer, seen):
    """An image scores the same alone, among others, and wherever it stands among them."""
    together = scorer.score(*some(seen, slice(40)))
    alone = np.concatenate([scorer.score(*some(seen, slice(i, i + 1))) for i in range(40)])
    turned = scorer.score(*some(seen, np.arange(39, -1, -1)))[::-1]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    np.testing.assert_allclose(together, turned, rtol=1e-5)


def test_scores_are_finite_even_for_images_without_sense(scorer, seen):
    """Blank, full and noisy images have finite scores; so have a perfect reconstruction and one from far away."""
    odd = np.stack([np.full(784, -1.0), np.ones(784), np.random.RandomState(0).uniform(-1, 1, 784), seen[0][0]]).astype(
        np.float32
    )
    made, codes = seen[1][:4].copy(), seen[2][:4] * 1e6
    made[3] = odd[3]
    scores, maps = scorer.score(odd, made, codes), scorer.error_map(odd, made, codes)
    assert scores.shape == (4,)
    assert bool(np.isfinite(scores).all())
    assert bool(np.isfinite(maps).all())


def test_an_error_map_is_a_picture_that_is_not_negative(scorer, seen):
    """There is a number for each pixel of each image, none below zero."""
    maps = scorer.error_map(*some(seen, slice(7)))
    assert maps.shape == (7, 784)
    assert bool((maps >= 0).all())


def test_a_scorer_rebuilt_from_its_arrays_scores_the_same(scorer, seen):
    """What `arrays` gives is all that there is to know."""
    again = load_scorer(scorer.name, {name: np.array(array) for name, array in scorer.arrays().items()})
    assert np.array_equal(again.score(*some(seen, slice(20))), scorer.score(*some(seen, slice(20))))
    assert again.name == scorer.name


def test_a_scorers_arrays_are_plain(scorer):
    """They are stored without pickling, and none is called as the calibration scores are."""
    arrays = scorer.arrays()
    assert all(array.dtype.kind in "fiu" for array in arrays.values())
    assert "calibration" not in arrays


def test_an_unknown_scorer_is_refused_with_those_there_are():
    """A misspelt name fails with a sentence that lists the names."""
    with pytest.raises(ValueError, match="mse, residual"):
        load_scorer("msr", {})


@pytest.mark.parametrize("name", residual_arrays())
def test_a_scorer_with_an_array_missing_or_not_finite_is_refused(name):
    """Each of its arrays is needed, and each is looked at."""
    arrays = residual_arrays()
    broken = arrays | {name: np.full_like(arrays[name], np.nan)}
    with pytest.raises(ValueError, match="not finite"):
        load_scorer("residual", broken)
    del arrays[name]
    with pytest.raises(KeyError, match=name):
        load_scorer("residual", arrays)
