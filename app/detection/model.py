"""The network: images in, reconstructions out. Knows nothing of scores, files or devices.

The architecture is the well-known tutorial autoencoder: fully connected, 784-128-64-12-2 and back, ReLU between the layers
and Tanh at the end. Layer names match the tutorial's, so that its `autoencoder.pth` loads unchanged.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import linear


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


class Plain:
    """A network's layers without their modules, for small batches, where calling the modules costs more than computing."""

    def __init__(self, model: Autoencoder) -> None:
        self._encoder = [(layer.weight, layer.bias) for layer in model.encoder if isinstance(layer, nn.Linear)]
        self._decoder = [(layer.weight, layer.bias) for layer in model.decoder if isinstance(layer, nn.Linear)]

    def encode(self, images: Tensor) -> Tensor:
        """As `Autoencoder.encode`."""
        return _chain(self._encoder, images)

    def decode(self, embeddings: Tensor) -> Tensor:
        """As `Autoencoder.decode`."""
        return _chain(self._decoder, embeddings).tanh_()


def _chain(layers: Sequence[tuple[Tensor, Tensor]], values: Tensor) -> Tensor:
    for weight, bias in layers[:-1]:
        values = linear(values, weight, bias).relu_()
    return linear(values, *layers[-1])


def _layers(widths: tuple[int, ...]) -> Iterator[nn.Module]:
    """Linear layers between consecutive widths, with a ReLU between each two."""
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        if index:
            yield nn.ReLU(inplace=True)
        yield nn.Linear(inputs, outputs)
