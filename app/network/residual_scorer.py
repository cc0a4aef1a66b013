"""The residual scorer: how odd is this residual among the errors that normal images make near the same embedding?

The mean squared residual misses much: the residuals of normal images are large along a few directions (the edges of strokes)
and tiny along the others, so an unusual residual hides among large usual ones; and a blank image has less error than most.
Here the residual, less the mean residual of its neighbourhood in the latent plane, is measured along its principal
directions, and two things are read from it and added:

1. energy: its energy in five bands of directions, and all of it over the image's own ink (next to nothing, a dot, has next to
   no error, but much for what it is), each as a logarithm in standard deviations of the neighbourhood. They are joined by
   log-sum-exp: a large one counts, a small one elsewhere does not excuse it.
2. shape: the log-odds, from a small network, that such a residual comes from a normal image rather than from one that was
   turned, cut up, pasted or faded. It weighs the directions that normal images alone cannot rank.

Fitting is the offline side's: training/scorers.py. Neighbourhoods are blended smoothly, so that no border lies between two
nearly equal images, and everything is low-rank, so that it costs less than the network.
"""

import math
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from app.network.arrays import Array, affine, largest, library, like, place, relu, sums_of_squares, to_numpy

BANDS = (0, 12, 24, 48, 96)  # borders of the bands of principal directions
ENERGIES = len(BANDS) + 1  # one for each band, one for the rest of the space, one over the image's ink
ENERGY_WEIGHT = 2.0
_USUAL_RESIDUAL = 0.05  # in [-1, 1] units: an error map calls nothing odd for less


@dataclass(frozen=True)
class ResidualScorer:
    """M regions of the latent plane, K directions of the P pixels, B = ENERGIES. All float32."""

    name: ClassVar[str] = "residual"

    location: Array  # [2] mean of the embeddings
    scale: Array  # [2] their standard deviation
    centres: Array  # [M, 2] of the regions, in standardised embeddings
    widths: Array  # [M] distance of each centre to its nearest neighbour
    pixel_mean: Array  # [M, P] mean residual of each region
    pixel_std: Array  # [M, P] its standard deviation
    directions: Array  # [P, K] principal directions, each over its shrunk standard deviation
    variance: Array  # [K] those standard deviations, squared
    mean: Array  # [M, K] pixel_mean along the directions
    band_mean: Array  # [M, B] log energy of each band in each region
    band_std: Array  # [M, B] its standard deviation
    w1: Array  # [K + B + 2, H] the network: inputs -> H -> H -> 1
    b1: Array
    w2: Array
    b2: Array
    w3: Array
    b3: Array
    centre: Array  # [] median evidence of the fitted images
    spread: Array  # [] its standard deviation

    def score(self, images: Array, reconstructions: Array, embeddings: Array) -> Array:
        """[N], > 0: 1 for the median normal image, and about 1.44 (1 / ln 2) more for each further standard deviation."""
        deviations = (self.evidence(images, reconstructions, embeddings) - self.centre) / self.spread
        lib = library(deviations)
        return (deviations.clip(0) + lib.log1p(lib.exp(-abs(deviations)))) / math.log(2)  # softplus

    def error_map(self, images: Array, reconstructions: Array, embeddings: Array) -> Array:
        """[N, P]: each pixel's residual in standard deviations of its neighbourhood, without sign."""
        near = self._near(self._standardised(embeddings))
        unusual = images - reconstructions - near @ self.pixel_mean
        return abs(unusual) / (near @ self.pixel_std).clip(_USUAL_RESIDUAL)

    def evidence(self, images: Array, reconstructions: Array, embeddings: Array) -> Array:
        """[N], shape plus energy, before it is scaled to a score."""
        whitened, bands, z = self.features(images, reconstructions, embeddings)
        lib = library(bands)
        hidden = relu(affine(inputs(whitened, bands, z), self.w1, self.b1))
        hidden = relu(affine(hidden, self.w2, self.b2))
        shape = affine(hidden, self.w3, self.b3)[:, 0]
        most = largest(bands)
        energy = lib.log(lib.exp(bands - most).sum(1)) + most[:, 0]  # log-sum-exp
        return shape + ENERGY_WEIGHT * energy

    def features(self, images: Array, reconstructions: Array, embeddings: Array) -> tuple[Array, Array, Array]:
        """-> whitened residuals [N, K], log band energies in local standard deviations [N, B], standardised embeddings."""
        lib = library(images)
        z = self._standardised(embeddings)
        usual = self._near(z) @ self._of_regions
        residuals = images - reconstructions
        along = residuals @ self.directions  # [N, K]
        whole = sums_of_squares(residuals)
        rest = (whole - (along * along) @ self.variance) / (residuals.shape[1] - BANDS[-1])
        relative = whole / (sums_of_squares(images + 1) + 1)
        whitened = along - usual[:, : BANDS[-1]]
        energies = [(whitened * whitened) @ self._in_bands, rest[:, None], relative[:, None]]
        log_energy = lib.log(lib.concatenate(energies, 1).clip(1e-6))  # [N, B]
        return whitened, (log_energy - usual[:, BANDS[-1] : -ENERGIES]) / usual[:, -ENERGIES:], z

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        return {field.name: to_numpy(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[np.float32]]) -> Self:
        """What `arrays()` gave -> the scorer, on numpy. Raises KeyError or ValueError where it is not that."""
        scorer = cls(**{field.name: arrays[field.name].astype(np.float32) for field in fields(cls)})
        if any(not np.isfinite(array).all() for array in vars(scorer).values()):
            raise ValueError("the scorer holds numbers that are not finite")
        regions = len(scorer.centres)
        if scorer.band_mean.shape != (regions, ENERGIES) or scorer.mean.shape != (regions, BANDS[-1]):
            raise ValueError("the scorer was fitted by another version of this program")
        return scorer

    def to(self, device: torch.device) -> Self:
        return type(self)(**{name: place(array, device) for name, array in self.arrays().items()})

    @cached_property
    def _of_regions(self) -> Array:
        """[M, K + 2 B]: what is blended between regions, side by side, since small products cost more than large ones."""
        return library(self.mean).concatenate([self.mean, self.band_mean, self.band_std], 1)

    @cached_property
    def _in_bands(self) -> Array:
        """[K, B - 1]: averages over the directions of each band."""
        averages = np.zeros((BANDS[-1], len(BANDS) - 1), np.float32)
        for band, (first, last) in enumerate(pairwise(BANDS)):
            averages[first:last, band] = 1 / (last - first)
        return like(self.mean, averages)

    def _standardised(self, embeddings: Array) -> Array:
        return (embeddings - self.location) / self.scale

    def _near(self, z: Array) -> Array:
        return near(z, self.centres, self.widths)


def near(z: Array, centres: Array, widths: Array) -> Array:
    """[N, M], rows sum to 1: how much each region speaks for each embedding, by a Gaussian kernel."""
    lib = library(z)
    exponents = sums_of_squares(z[:, None] - centres) / (-2 * widths * widths)  # differences first: exact, however near
    weights = lib.exp(exponents - largest(exponents))
    return weights / weights.sum(1)[:, None]


def inputs(whitened: Array, bands: Array, z: Array) -> Array:
    """What the network reads: [N, K + B + 2]; far-off values are cut, where it has learnt nothing."""
    return library(whitened).concatenate([whitened, bands.clip(-4, 8), z.clip(-6, 6)], 1)
