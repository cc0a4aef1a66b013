"""Small networks for prepared uploads: the log-odds that an image is not a digit, and that it is a picture of a thing.

All are classifiers in numpy, fitted in training/upload_fitting.py. The digit networks are convolutional and read the prepared
image; they were trained on prepared uploads, normal ones and synthetic anomalies, because preparation gives all images the look
of a digit. The mean of two, which differ in their random start alone, catches 1 % more anomalies than one. The picture network
reads the upload features, in which pictures of things (training/synthetic/pictures.py) differ from paper with ink.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from app.detection.imaging.upload_features import SCORED_FEATURES

Images = NDArray[np.uint8]
Values = NDArray[np.floating[Any]]
Floats = NDArray[np.float32]

# The log-odds of the digit networks and of the picture network are multiplied by these, and added to an image score and a
# feature distance of about 1. With (0.25, 0.25), 97 % of photographs of digits are accepted rather than 98 %; with
# (0.25, 0.15), 93 % of photographs of things are flagged rather than 97 %.
WEIGHTS = (0.2, 0.25)
LARGEST_LOG_ODDS = 8.0  # of a digit network: it is more certain only of images unlike those that it was trained on
FEATURE_RANGE = (-4.0, 6.0)  # in standard deviations
STRIDE = 2  # of the convolutions
_CHUNK_IMAGES = 16  # convolved at a time: 0.5 MB


class SmallNetwork(NamedTuple):
    """A fully connected network with ReLU, whose output is one log-odds."""

    weights: tuple[Floats, ...]  # of each layer [I, H], of the last [H, 1]
    biases: tuple[Floats, ...]  # [H], of the last layer [1]

    def log_odds(self, inputs: Floats) -> Floats:
        """Inputs [N, I] -> log-odds [N]."""
        hidden = inputs @ self.weights[0] + self.biases[0]
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            hidden = np.maximum(hidden, 0) @ weight + bias
        column: Floats = hidden[:, 0]
        return column

    def arrays(self, prefix: str) -> dict[str, Floats]:
        """The arrays that `from_arrays` reads."""
        named = {f"{prefix}_w{layer}": weight for layer, weight in enumerate(self.weights)}
        return named | {f"{prefix}_b{layer}": bias for layer, bias in enumerate(self.biases)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], prefix: str, inputs: int | None = None) -> Self:
        """Rebuild from `arrays(prefix)`.

        Raises:
            KeyError, ValueError: an array is missing, or the shapes do not fit each other or `inputs`.
        """
        weights, biases = _layers(arrays, prefix, "w"), _layers(arrays, prefix, "b")
        widths = (inputs or weights[0].shape[0], *(bias.size for bias in biases))
        if (
            [weight.shape for weight in weights] != [*pairwise(widths)]
            or widths[-1] != 1
            or any(bias.ndim != 1 for bias in biases)
        ):
            raise ValueError(f"the layers of the network {prefix} do not fit each other")
        return cls(weights, biases)


class ConvolutionalNetwork(NamedTuple):
    """Convolutions with a stride of 2 and ReLU, and a fully connected network, whose output is one log-odds."""

    kernels: tuple[Floats, ...]  # of each convolution [C, K, K, O]
    biases: tuple[Floats, ...]  # [O]
    head: SmallNetwork  # its inputs are rows, columns and channels of the last convolution, in this order

    def log_odds(self, inputs: Floats) -> Floats:
        """Pixels [N, S * S] -> log-odds [N]."""
        starts = range(0, max(len(inputs), 1), _CHUNK_IMAGES)
        return np.concatenate([self._log_odds(inputs[start : start + _CHUNK_IMAGES]) for start in starts])

    def _log_odds(self, inputs: Floats) -> Floats:
        side = math.isqrt(inputs.shape[1])
        values = inputs.reshape(-1, side, side, 1)
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            values = _convolve(values, kernel, bias)
        return self.head.log_odds(values.reshape(len(inputs), math.prod(values.shape[1:])))

    def arrays(self, prefix: str) -> dict[str, Floats]:
        """The arrays that `from_arrays` reads."""
        kernels = {f"{prefix}_kernel{layer}": kernel for layer, kernel in enumerate(self.kernels)}
        biases = {f"{prefix}_kernel_bias{layer}": bias for layer, bias in enumerate(self.biases)}
        return kernels | biases | self.head.arrays(f"{prefix}_head")

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], prefix: str) -> Self:
        """Rebuild from `arrays(prefix)`.

        Raises:
            KeyError, ValueError: an array is missing, or the shapes do not fit each other.
        """
        kernels, biases = _layers(arrays, prefix, "kernel"), _layers(arrays, prefix, "kernel_bias")
        channels = (1, *(bias.size for bias in biases))
        square = all(kernel.ndim == 4 and kernel.shape[1] == kernel.shape[2] for kernel in kernels)
        if not square or [(kernel.shape[0], kernel.shape[3]) for kernel in kernels] != [*pairwise(channels)]:
            raise ValueError(f"the convolutions of the network {prefix} do not fit each other")
        return cls(kernels, biases, SmallNetwork.from_arrays(arrays, f"{prefix}_head"))


def _layers(arrays: Mapping[str, NDArray[Any]], prefix: str, name: str) -> tuple[Floats, ...]:
    """The arrays of this name of all layers; at least one. Raises KeyError."""
    layers = [arrays[f"{prefix}_{name}0"]]
    while (layer := arrays.get(f"{prefix}_{name}{len(layers)}")) is not None:
        layers.append(layer)
    return tuple(layer.astype(np.float32) for layer in layers)


def _convolve(values: Floats, kernel: Floats, bias: Floats) -> Floats:
    """[N, H, H, C] -> [N, H', H', O] without a border. Taking windows by position is twice as fast as sliding views."""
    count, side, _, channels = values.shape
    windows = _windows(side, channels, kernel.shape[1])
    columns = values.reshape(count, side * side * channels).take(windows, axis=1)  # [N, H' * H', C * K * K]
    convolved: Floats = np.maximum(columns @ kernel.reshape(-1, len(bias)) + bias, 0)
    out = math.isqrt(len(windows))
    return convolved.reshape(count, out, out, len(bias))


@lru_cache(maxsize=16)
def _windows(side: int, channels: int, size: int) -> NDArray[np.intp]:
    """The positions of the values of each window of size K in an image [H, H, C] in memory order: [H' * H', C * K * K]."""
    positions = np.arange(side * side * channels).reshape(side, side, channels)
    windows = np.lib.stride_tricks.sliding_window_view(positions, (size, size), axis=(0, 1))[::STRIDE, ::STRIDE]
    return windows.reshape(-1, channels * size * size)


@dataclass(frozen=True)
class UploadNetworks:
    """The networks, what the upload features are scaled by, and the weights of the networks in the score."""

    digits: tuple[ConvolutionalNetwork, ...]  # read pixels in [0, 1], [S * S]
    picture: SmallNetwork  # reads scaled features
    feature_mean: Floats  # [F] of the SCORED_FEATURES of normal uploads
    feature_std: Floats  # [F]
    weights: Floats  # [2] of digits and picture

    def score(self, images: Images, features: Values) -> NDArray[np.float64]:
        """Prepared images [N, S, S] and upload features [N, K] -> what is added to the score [N], at least 0."""
        pixels = images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
        odds = [np.clip(each.log_odds(pixels), -LARGEST_LOG_ODDS, LARGEST_LOG_ODDS) for each in self.digits]
        digit = np.mean(odds, axis=0) + LARGEST_LOG_ODDS
        picture = np.logaddexp(0, self.picture.log_odds(scale_features(features, self.feature_mean, self.feature_std)))
        added: NDArray[np.float64] = (self.weights[0] * digit + self.weights[1] * picture).astype(np.float64)
        return added

    def arrays(self) -> dict[str, Floats]:
        """The arrays that `from_arrays` reads."""
        networks = self.picture.arrays("evidence_picture")
        for number, each in enumerate(self.digits):
            networks |= each.arrays(f"evidence_digit{number}")
        scaling = {"evidence_feature_mean": self.feature_mean, "evidence_feature_std": self.feature_std}
        return {**networks, **scaling, "evidence_network_weights": self.weights}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self | None:
        """Rebuild from `arrays()`; None for a version of an older release, which has no networks.

        Raises:
            KeyError, ValueError: an array is missing, or has another shape.
        """
        names = {name.split("_")[1] for name in arrays if name.startswith("evidence_digit")}
        if not names:
            return None
        mean, std, weights = (
            arrays[f"evidence_{name}"].astype(np.float32) for name in ("feature_mean", "feature_std", "network_weights")
        )
        count = int(SCORED_FEATURES.sum())
        if mean.shape != (count,) or std.shape != (count,) or weights.shape != (len(WEIGHTS),):
            raise ValueError(f"the upload networks are not for {count} features")
        digits = tuple(ConvolutionalNetwork.from_arrays(arrays, f"evidence_digit{number}") for number in range(len(names)))
        return cls(digits, SmallNetwork.from_arrays(arrays, "evidence_picture", count), mean, std, weights)


def scale_features(features: Values, mean: Floats, std: Floats) -> Floats:
    """Upload features [N, K] -> inputs of the picture network [N, F], in standard deviations from the mean."""
    scaled: Floats = np.clip((features[:, SCORED_FEATURES] - mean) / std, *FEATURE_RANGE).astype(np.float32)
    return scaled
