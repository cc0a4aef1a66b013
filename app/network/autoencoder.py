"""The network: images in, reconstructions out. Knows nothing of scores, files or devices.

The architecture is the well-known tutorial autoencoder: fully connected, 784-128-64-12-2 and back, ReLU between the layers
and Tanh at the end. Layer names match the tutorial's, so that its `autoencoder.pth` loads unchanged.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from app.network.arrays import Array, affine, library, place, relu, to_numpy


@dataclass(frozen=True)
class ModelConfig:
    """The dimensions of an `Autoencoder`; the defaults are the tutorial's."""

    image_size: int = 28
    hidden: tuple[int, ...] = (128, 64, 12)
    latent_dim: int = 2

    def __post_init__(self) -> None:
        if min((self.image_size, self.latent_dim, *self.hidden)) < 1:
            raise ValueError(f"Every dimension of the network must be at least 1, but got {self}.")

    @property
    def pixels(self) -> int:
        return self.image_size**2  # 784

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.pixels, *self.hidden, self.latent_dim)  # (784, 128, 64, 12, 2)


class Autoencoder(nn.Module):
    """Maps images to a latent plane and back. Images are flat, float32, in [-1, 1]."""

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config or ModelConfig()
        widths = self.config.widths
        self.encoder = nn.Sequential(*_layers(widths))
        self.decoder = nn.Sequential(*_layers(widths[::-1]), nn.Tanh())

    def encode(self, images: Tensor) -> Tensor:
        """[N, pixels] in [-1, 1] -> embeddings [N, latent_dim], unbounded."""
        embeddings: Tensor = self.encoder(images)
        return embeddings

    def decode(self, embeddings: Tensor) -> Tensor:
        """[N, latent_dim] -> reconstructions [N, pixels] in [-1, 1]."""
        reconstructions: Tensor = self.decoder(embeddings)
        return reconstructions

    def forward(self, images: Tensor) -> Tensor:
        """[N, pixels] -> reconstructions [N, pixels]."""
        return self.decode(self.encode(images))


class Layers:
    """A network's weights without its modules, on the device where it works: numpy's arrays on the CPU.

    There the embedding is computed in double precision. The decoder makes 1e-4 of a pixel of its last bit, and that bit
    depends on the order of a sum, thus on how many images come together: scores would differ by more than 1e-5 of themselves
    with an image's company. So they differ by less than half of that.
    """

    def __init__(self, model: Autoencoder, device: torch.device) -> None:
        self._encoder, self._decoder = (_weights(half, device) for half in (model.encoder, model.decoder))
        if device.type == "cpu":
            self._encoder = [(weight.astype(np.float64), bias.astype(np.float64)) for weight, bias in self._encoder]

    def encode(self, images: Array) -> Array:
        """As `Autoencoder.encode`: float32 [N, pixels] -> float32 [N, latent_dim]."""
        if isinstance(images, np.ndarray):
            return _chain(self._encoder, images.astype(np.float64)).astype(np.float32)
        return _chain(self._encoder, images)

    def decode(self, embeddings: Array) -> Array:
        """As `Autoencoder.decode`: float32 [N, latent_dim] -> float32 [N, pixels]."""
        return library(embeddings).tanh(_chain(self._decoder, embeddings))


def _weights(half: nn.Sequential, device: torch.device) -> list[tuple[Array, Array]]:
    """Weight [inputs, outputs] and bias [outputs] of each layer."""
    layers = [layer for layer in half if isinstance(layer, nn.Linear)]
    pairs = [(layer.weight.detach().T.contiguous(), layer.bias.detach().clone()) for layer in layers]
    return [(place(to_numpy(weight), device), place(to_numpy(bias), device)) for weight, bias in pairs]


def _chain(layers: Sequence[tuple[Array, Array]], values: Array) -> Array:
    for weight, bias in layers[:-1]:
        values = relu(affine(values, weight, bias))
    return affine(values, *layers[-1])


def _layers(widths: tuple[int, ...]) -> Iterator[nn.Module]:
    """Linear layers between consecutive widths, with a ReLU between each two."""
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        if index:
            yield nn.ReLU(inplace=True)
        yield nn.Linear(inputs, outputs)
