import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tutorial import TUTORIAL

from app.network.autoencoder import Autoencoder, ModelConfig, make_autoencoder


def test_the_default_network_has_the_tutorials_names_and_shapes():
    """A tutorial reader's own weights fit, by name and by shape."""
    assert {name: tuple(weight.shape) for name, weight in Autoencoder().state_dict().items()} == TUTORIAL


def test_the_tutorials_own_layers_compute_the_same():
    """Loaded into the tutorial's layers, the weights give the same reconstructions."""
    from torch import nn

    model = Autoencoder()
    encoder = nn.Sequential(
        nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 2)
    )
    decoder = nn.Sequential(
        nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 784), nn.Tanh()
    )
    encoder.load_state_dict(model.encoder.state_dict())
    decoder.load_state_dict(model.decoder.state_dict())
    images = torch.rand(5, 784, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        assert torch.equal(decoder(encoder(images)), model(images))


@given(
    st.builds(
        ModelConfig,
        image_size=st.integers(1, 12),
        hidden=st.lists(st.integers(1, 9), max_size=4).map(tuple),
        latent_dim=st.integers(1, 5),
    )
)
def test_any_dimensions_give_a_network_of_these_dimensions(config):
    """Whatever the configuration: embeddings have latent_dim numbers, reconstructions are images within [-1, 1]."""
    model = Autoencoder(config)
    with torch.inference_mode():
        embeddings = model.encode(torch.zeros(3, config.pixels))
        reconstructions = model.decode(embeddings)
    assert embeddings.shape == (3, config.latent_dim)
    assert reconstructions.shape == (3, config.image_size**2)
    assert bool((reconstructions.abs() <= 1).all())


@pytest.mark.parametrize("wrong", [{"image_size": 0}, {"latent_dim": 0}, {"hidden": (128, 0)}, {"hidden": (-1,)}])
def test_dimensions_below_one_are_refused(wrong):
    """A configuration that is no network fails with a sentence."""
    with pytest.raises(ValueError, match="at least 1"):
        ModelConfig(**wrong)


def test_a_variational_network_adds_one_layer_to_the_plain_one():
    """The names and shapes of the plain network stay; the encoder's second output is the only addition."""
    state = make_autoencoder(ModelConfig(variational=True)).state_dict()
    added = {name: tuple(weight.shape) for name, weight in state.items() if name not in TUTORIAL}
    assert {name: tuple(state[name].shape) for name in TUTORIAL} == TUTORIAL
    assert added == {"log_variance.weight": (2, 12), "log_variance.bias": (2,)}


def test_the_variational_loss_is_the_evidence_lower_bound():
    """With the mean and variance of the prior the divergence is zero; a mean of 3 in each dimension adds 9 / 2 each."""
    model = make_autoencoder(ModelConfig(8, (4,), 3, variational=True))
    last, log_variance, images = model.encoder[-1], model.log_variance, torch.zeros(5, 64)
    with torch.no_grad():
        for layer in (last, log_variance, model.decoder[0]):  # the decoder ignores its input
            layer.weight.zero_()
            layer.bias.zero_()
        at_prior = model.training_loss(images)
        torch.testing.assert_close(at_prior, model(images).square().mean())
        last.bias.fill_(3)
        torch.testing.assert_close(model.training_loss(images) - at_prior, torch.tensor(2 * 3 * 4.5 / 64))


def test_the_variational_loss_depends_on_its_noise():
    """The noise comes from a generator; detection draws nothing, and the plain network needs none."""
    model = make_autoencoder(ModelConfig(variational=True))
    images = torch.rand(4, 784, generator=torch.Generator().manual_seed(0))
    noises = [model.draw_noise(4, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    one, same, other = (model.training_loss(images, noise) for noise in noises)
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(model(images), model(images))
    assert make_autoencoder(ModelConfig()).draw_noise(4) is None
