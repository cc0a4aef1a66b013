from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strokes import stroke_images

from app.detection import store
from app.detection.runtimes import load_network
from app.network.autoencoder import ForwardPass
from app.network.detector_network import normalise
from app.network.residual_scorer import (
    BANDS,
    ENERGIES,
    OLDER_RELEASES,
    SHAPES,
    Features,
    ResidualScorer,
    region_weights,
    shape_inputs,
)

IMAGES = stroke_images(24, seed=11)


@pytest.fixture(scope="module")
def bundle(shipped_store):
    """The shipped detector, whose scorer was fitted on the real images."""
    return store.load(store.find(shipped_store, "mnist"))


@pytest.fixture(scope="module")
def network(bundle):
    return load_network(bundle).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def scorer(network):
    return network.scorer


def forward(network, images):
    return network.autoencoder.run(normalise(torch.from_numpy(images)))


def test_the_median_normal_image_scores_one(bundle):
    """The calibration images, which the scorer was not fitted on, agree with its scale."""
    assert np.median(bundle.calibration.scores) == pytest.approx(1, abs=0.1)


def test_scores_are_positive_and_finite_for_any_image(network, scorer):
    """Drawings, noise, black, white and an image of a single bright pixel."""
    random = np.random.RandomState(0)
    plain = [np.full((1, 28, 28), value, np.uint8) for value in (0, 1, 127, 255)]
    dot = np.zeros((1, 28, 28), np.uint8)
    dot[0, 5, 5] = 255
    images = np.concatenate([IMAGES, random.randint(0, 256, (20, 28, 28)).astype(np.uint8), *plain, dot])
    out = forward(network, images)
    scores, maps = scorer(out), scorer.error_map(out)
    assert torch.isfinite(scores).all()
    assert torch.isfinite(maps).all()
    assert (scores > 0).all()
    assert (maps >= 0).all()


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.floats(-1, 1))
def test_scores_are_finite_for_any_embedding(scorer, x, y, grey):
    """Also far outside of the embeddings that the scorer was fitted on."""
    embeddings = torch.tensor([[x, y]], dtype=torch.float32)
    out = ForwardPass(torch.full((1, 784), grey), torch.zeros(1, 128), embeddings, torch.zeros(1, 784))
    for score in (scorer, scorer.error_map):
        assert torch.isfinite(score(out)).all()


def test_small_scores_are_exact(network, scorer):
    """Softplus keeps its relative precision where log(1 + u) would lose it."""
    out = forward(network, IMAGES)
    deviations = (scorer.unscaled_score(out) - scorer.centre) / scorer.spread
    moved = ResidualScorer({**scorer.tensors(), "centre": scorer.centre + 12 * scorer.spread})
    exact = torch.nn.functional.softplus(deviations.double() - 12) / np.log(2)
    torch.testing.assert_close(moved(out).double(), exact, rtol=1e-4, atol=0)


def test_a_blank_page_is_an_anomaly(bundle, network, scorer):
    """The mean squared error of a blank page is smaller than that of most digits; this score is above the threshold."""
    out = forward(network, np.zeros((1, 28, 28), np.uint8))
    assert float(scorer(out)[0]) > bundle.card.threshold
    assert float((out.images - out.reconstructions).square().mean()) < 0.3


def test_the_energies_of_all_bands_grow_with_the_residual(network, scorer):
    """Once the residual is larger than usual."""
    out = forward(network, IMAGES)
    sizes = []
    for factor in (2, 4, 8, 16):
        images = torch.lerp(out.reconstructions, out.images, factor)
        sizes.append(scorer.features(out._replace(images=images)).bands[:, :-1])
    assert all((larger > smaller).all() for smaller, larger in pairwise(sizes))


def test_features_have_the_shapes_that_the_shape_network_reads(network, scorer):
    """Directions, bands, embedding and the encoder's first layer side by side; extreme bands and embeddings are clipped."""
    out = forward(network, IMAGES)
    whitened, bands, z = scorer.features(out)
    assert whitened.shape == (len(IMAGES), BANDS[-1])
    assert bands.shape == (len(IMAGES), ENERGIES)
    assert z.shape == (len(IMAGES), 2)
    clipped = shape_inputs(Features(whitened, bands * 1e6, z * 1e6), out.hidden)
    assert clipped.shape == (len(IMAGES), BANDS[-1] + ENERGIES + 2 + 128)
    assert clipped[:, BANDS[-1] : -128].abs().max() <= 8


def test_the_energy_decides_where_the_shape_network_knows_nothing(network, scorer):
    """However normal the network calls an image, a residual far from all normal ones keeps its score."""
    out = forward(network, np.full((1, 28, 28), 255, np.uint8))
    limits = {"shape_range": torch.tensor([-8.0, 4.0])}
    wrong = ResidualScorer({**scorer.tensors(), **limits, "w3": scorer.w3 * 0, "b3": torch.full((1,), -1e5)})
    weight, sharpness = scorer.energy
    energy = weight * torch.logsumexp(sharpness * scorer.features(out).bands, 1) / sharpness
    torch.testing.assert_close(wrong.unscaled_score(out), energy - 8)


def test_a_scorer_that_reads_no_hidden_layer_is_served(network, scorer):
    """As those of older releases: its shape network has fewer inputs."""
    older = ResidualScorer({**scorer.tensors(), "w1": scorer.w1[: BANDS[-1] + ENERGIES + 2]})
    assert torch.isfinite(older(forward(network, IMAGES))).all()


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 1000), st.floats(0.01, 100))
def test_the_weights_of_all_regions_sum_to_one(images, regions, seed, spread):
    """Near the regions or far from them."""
    g = torch.Generator().manual_seed(seed)
    z, centres = spread * torch.randn(images, 2, generator=g), torch.randn(regions, 2, generator=g)
    weights = region_weights(z, centres, torch.rand(regions, generator=g) + 0.1)
    torch.testing.assert_close(weights.sum(1), torch.ones(images))
    assert (weights >= 0).all()


def test_a_centre_belongs_to_its_own_region(scorer):
    """A region's weight is the largest at its own centre."""
    weights = region_weights(scorer.centres, scorer.centres, scorer.widths)
    assert torch.equal(weights.argmax(1), torch.arange(len(scorer.centres)))


@pytest.mark.parametrize("name", sorted(SHAPES.keys() - OLDER_RELEASES.keys()))
def test_tensors_that_are_missing_or_not_finite_are_refused(scorer, name):
    """Each fitted tensor is needed, and each is checked."""
    tensors = scorer.tensors()
    with pytest.raises(KeyError, match=name):
        ResidualScorer({key: tensor for key, tensor in tensors.items() if key != name})
    for wrong in (np.nan, np.inf):
        with pytest.raises(ValueError, match="not finite"):
            ResidualScorer({**tensors, name: torch.full_like(tensors[name], wrong)})


def test_a_scorer_of_other_bands_is_refused(scorer):
    """A version of another release may have been fitted with other bands."""
    with pytest.raises(ValueError, match="another version"):
        ResidualScorer({**scorer.tensors(), "band_mean": torch.zeros(len(scorer.centres), 3)})


def test_moving_to_a_device_moves_everything(network, scorer):
    """All tensors are buffers of the module."""
    moved = ResidualScorer(scorer.tensors()).to("meta")
    assert all(tensor.device.type == "meta" for tensor in [*moved.tensors().values(), *moved.buffers()])
    out = ForwardPass(*(part.to("meta") for part in forward(network, IMAGES)))
    assert moved(out).shape == (len(IMAGES),)
