"""Scorers: images and their reconstructions in, one anomaly score an image out. Knows no threshold (see conformal.py).

A scorer is fitted once, by the offline side, on images that the network was trained on, and is immutable afterwards. Higher
scores are more anomalous. The strong one has a file of its own (residual.py).
"""

from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from app.network.arrays import Array, sums_of_squares
from app.network.residual_scorer import ResidualScorer

Arrays = dict[str, NDArray[np.float32]]


class Scorer(Protocol):
    """What a detector needs of a scorer. Arrays are float32: images and reconstructions [N, pixels] in [-1, 1]."""

    name: ClassVar[str]

    def score(self, images: Array, reconstructions: Array, embeddings: Array) -> Array:
        """-> scores [N]; each depends on its own image alone."""

    def error_map(self, images: Array, reconstructions: Array, embeddings: Array) -> Array:
        """-> [N, pixels]: how odd each pixel is, not negative, 1 = as large as is usual."""

    def arrays(self) -> Arrays:
        """What `load_scorer` needs to rebuild this scorer."""

    def to(self, device: torch.device) -> "Scorer":
        """The same scorer for arrays on `device`: numpy's on the CPU, else torch's."""


def reconstruction_error(images: Array, reconstructions: Array) -> Array:
    """Mean squared residual over the pixels: [N, pixels] twice -> [N]. The training loss of each image."""
    return sums_of_squares(images - reconstructions) / images.shape[1]


class MseScorer:
    """The tutorial's score: the mean squared residual itself."""

    name: ClassVar[str] = "mse"

    def score(self, images: Array, reconstructions: Array, embeddings: Array) -> Array:
        return reconstruction_error(images, reconstructions)

    def error_map(self, images: Array, reconstructions: Array, embeddings: Array) -> Array:
        squared = (images - reconstructions) ** 2
        return squared / squared.mean(1)[:, None].clip(1e-12)

    def arrays(self) -> Arrays:
        return {}

    def to(self, device: torch.device) -> "MseScorer":
        return self


def load_scorer(name: str, arrays: Arrays) -> Scorer:
    """Rebuild a scorer from what its `arrays()` gave.

    Raises:
        ValueError: no scorer has that name, or the arrays hold numbers that are not finite.
        KeyError: an array is missing.
    """
    if name == MseScorer.name:
        return MseScorer()
    if name == ResidualScorer.name:
        return ResidualScorer.from_arrays(arrays)
    raise ValueError(f"there is no scorer named {name!r}; there are: {MseScorer.name}, {ResidualScorer.name}")
