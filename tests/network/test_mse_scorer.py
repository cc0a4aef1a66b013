import pytest
import torch

from app.network.autoencoder import ForwardPass
from app.network.mse_scorer import MseScorer, reconstruction_error


def test_the_reconstruction_error_is_the_mean_squared_residual():
    """It is the training loss of each image: its mean is the loss of the batch."""
    images, made = (torch.rand(60, 784, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in (0, 1))
    errors = reconstruction_error(images, made)
    assert errors.shape == (60,)
    assert float(errors.mean()) == pytest.approx(float(torch.nn.functional.mse_loss(made, images)), rel=1e-5)
    assert float(reconstruction_error(images, images).max()) == 0


def test_an_error_map_is_relative_to_the_images_own_error():
    """Its mean over the pixels is 1; a perfect reconstruction has an empty map."""
    images, made = (torch.rand(5, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    maps = MseScorer().error_map(forward_pass(images, made))
    torch.testing.assert_close(maps.mean(1), torch.ones(5))
    assert float(MseScorer().error_map(forward_pass(images, images)).max()) == 0


def forward_pass(images, reconstructions):
    return ForwardPass(images, torch.zeros(len(images), 1), torch.zeros(len(images), 2), reconstructions)
