"""The tutorial autoencoder: fully connected, 784-128-64-12-2 and back, ReLU between the layers, Tanh at the end.

Images in, reconstructions out, both flat and in [-1, 1]. The layer names are the tutorial's, so its `autoencoder.pth` loads
unchanged. The variational autoencoder has the same layers and one more, the encoder's second output.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn


class WeightsError(ValueError):
    """A weights file is missing, unreadable, unsafe, or for a different architecture; the message says which of these."""


@dataclass(frozen=True)
class ModelConfig:
    """The dimensions of an `Autoencoder`; the defaults are the tutorial's."""

    image_size: int = 28
    hidden: tuple[int, ...] = (128, 64, 12)
    latent_dim: int = 2
    variational: bool = False

    def __post_init__(self) -> None:
        if min((self.image_size, self.latent_dim, *self.hidden)) < 1:
            raise ValueError(f"Every dimension of the network must be at least 1, but got {self}.")

    @property
    def pixels(self) -> int:
        return self.image_size**2  # 784

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.pixels, *self.hidden, self.latent_dim)  # (784, 128, 64, 12, 2)


class ForwardPass(NamedTuple):
    """Images and the network's outputs for them."""

    images: Tensor  # [N, pixels] in [-1, 1]
    hidden: Tensor  # [N, hidden[0]], the activations of the encoder's first layer; [N, 0] where it has one layer only
    embeddings: Tensor  # [N, latent_dim]
    reconstructions: Tensor  # [N, pixels] in [-1, 1]


class Autoencoder(nn.Module):
    """Maps images to a latent space and back. Images are flat, float32, in [-1, 1]."""

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

    def run(self, images: Tensor) -> ForwardPass:
        """[N, pixels] in [-1, 1] -> all outputs."""
        if self.config.hidden:
            hidden = self.encoder[:2](images)
            embeddings = self.encoder[2:](hidden)
        else:
            hidden, embeddings = images[:, :0], self.encode(images)
        return ForwardPass(images, hidden, embeddings, self.decode(embeddings))

    def draw_noise(self, count: int, rng: Generator | None = None) -> Tensor | None:
        """What `training_loss` needs besides `count` images: nothing."""
        return None

    def training_loss(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """[N, pixels] -> the mean squared error of the reconstructions. `noise` is unused."""
        return F.mse_loss(self(images), images)


class VariationalAutoencoder(Autoencoder):
    """An autoencoder whose encoder returns a normal distribution over embeddings (Kingma & Welling, 2014).

    The distribution's mean is the embedding, so nothing is random after the training. The prior is N(0, 1).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.log_variance = nn.Linear(config.widths[-2], config.latent_dim)

    def draw_noise(self, count: int, rng: Generator | None = None) -> Tensor:
        """Standard normal numbers [count, latent_dim] on the CPU, from `rng` or else torch's global generator."""
        return torch.randn((count, self.config.latent_dim), generator=rng)

    def training_loss(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """[N, pixels] -> the negative evidence lower bound, up to a constant, divided by pixels / 2.

        The likelihood of a pixel is normal with variance 1, so the first term is the mean squared error. `noise`
        [N, latent_dim] draws one embedding of each image; without it the distribution's mean is taken.
        """
        hidden = self.encoder[:-1](images)
        mean, log_variance = self.encoder[-1](hidden), self.log_variance(hidden)  # [N, latent_dim] each
        drawn = mean if noise is None else mean + (log_variance / 2).exp() * noise
        reconstructions = self.decode(drawn)
        divergence = (mean.square() + log_variance.exp() - log_variance - 1).sum(1) / 2  # Kullback-Leibler, from N(0, 1)
        loss: Tensor = F.mse_loss(reconstructions, images) + 2 * divergence.mean() / self.config.pixels
        return loss


def make_autoencoder(config: ModelConfig) -> Autoencoder:
    """An untrained network of these dimensions; its initial weights come from torch's global generator."""
    return VariationalAutoencoder(config) if config.variational else Autoencoder(config)


def _layers(widths: tuple[int, ...]) -> Iterator[nn.Module]:
    """Linear layers between consecutive widths, with a ReLU before every layer except the first."""
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        if index:
            yield nn.ReLU(inplace=True)
        yield nn.Linear(inputs, outputs)


def load_autoencoder(content: bytes, config: ModelConfig, label: str) -> Autoencoder:
    """Read the content of an `autoencoder.pth` into a network on the CPU.

    Raises:
        WeightsError: it contains anything but the tensors of this architecture.
    """
    model, state = make_autoencoder(config), load_tensors(io.BytesIO(content), label)
    try:
        model.load_state_dict(state)
    except Exception as error:  # its type depends on what the file holds instead of a state_dict
        raise WeightsError(f"{label} does not hold the weights of {config}: {_first_line(error)}") from error
    check_finite(model, label)
    return model


def load_tensors(source: Path | BinaryIO, label: str) -> Any:  # noqa: ANN401 - whatever torch.save was given
    """What torch.save wrote to a file, on the CPU. Only tensors are unpickled, no code runs. `label` names the file in errors.

    Raises:
        WeightsError: the file is missing or unreadable, or contains more than tensors.
    """
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{label} is missing.") from None
    except Exception as error:  # torch.load raises any type of error
        if "weights_only" in str(error):  # the rest of torch's message recommends weights_only=False
            raise WeightsError(
                f"{label} contains more than tensors, for instance a whole model; save torch.save(model.state_dict(), ...)."
            ) from error
        raise WeightsError(f"{label} is no file of torch.save: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def check_finite(model: Autoencoder, label: str) -> None:
    """Raise WeightsError if a weight is not a finite number."""
    if not all(bool(torch.isfinite(weight).all()) for weight in model.parameters()):
        raise WeightsError(f"{label} holds weights that are not finite.")


def save_autoencoder(model: Autoencoder) -> bytes:
    """The content of an `autoencoder.pth`: the state_dict, on the CPU."""
    file = io.BytesIO()
    torch.save({name: weight.cpu() for name, weight in model.state_dict().items()}, file)
    return file.getvalue()
