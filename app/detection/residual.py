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
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

BANDS = (0, 12, 24, 48, 96)  # borders of the bands of principal directions
ENERGIES = len(BANDS) + 1  # one for each band, one for the rest of the space, one over the image's ink
ENERGY_WEIGHT = 2.0
_USUAL_RESIDUAL = 0.05  # in [-1, 1] units: an error map calls nothing odd for less


@dataclass(frozen=True)
class ResidualScorer:
    """M regions of the latent plane, K directions of the P pixels, B = ENERGIES. All float32."""

    name: ClassVar[str] = "residual"

    location: Tensor  # [2] mean of the embeddings
    scale: Tensor  # [2] their standard deviation
    centres: Tensor  # [M, 2] of the regions, in standardised embeddings
    widths: Tensor  # [M] distance of each centre to its nearest neighbour
    pixel_mean: Tensor  # [M, P] mean residual of each region
    pixel_std: Tensor  # [M, P] its standard deviation
    directions: Tensor  # [P, K] principal directions, each over its shrunk standard deviation
    variance: Tensor  # [K] those standard deviations, squared
    mean: Tensor  # [M, K] pixel_mean along the directions
    band_mean: Tensor  # [M, B] log energy of each band in each region
    band_std: Tensor  # [M, B] its standard deviation
    w1: Tensor  # [K + B + 2, H] the network: inputs -> H -> H -> 1
    b1: Tensor
    w2: Tensor
    b2: Tensor
    w3: Tensor
    b3: Tensor
    centre: Tensor  # [] median evidence of the fitted images
    spread: Tensor  # [] its standard deviation

    def score(self, images: Tensor, reconstructions: Tensor, embeddings: Tensor) -> Tensor:
        """[N], > 0: 1 for the median normal image, and about 1.44 (1 / ln 2) more for each further standard deviation."""
        evidence = self.evidence(images, reconstructions, embeddings)
        return F.softplus((evidence - self.centre) / self.spread) / math.log(2)

    def error_map(self, images: Tensor, reconstructions: Tensor, embeddings: Tensor) -> Tensor:
        """[N, P]: each pixel's residual in standard deviations of its neighbourhood, without sign."""
        near = self._near(self._standardised(embeddings))
        unusual = images - reconstructions - near @ self.pixel_mean
        return unusual.abs() / (near @ self.pixel_std).clamp(min=_USUAL_RESIDUAL)

    def evidence(self, images: Tensor, reconstructions: Tensor, embeddings: Tensor) -> Tensor:
        """[N], shape plus energy, before it is scaled to a score."""
        whitened, bands, z = self.features(images, reconstructions, embeddings)
        hidden = torch.addmm(self.b1, inputs(whitened, bands, z), self.w1).relu_()
        hidden = torch.addmm(self.b2, hidden, self.w2).relu_()
        shape = torch.addmm(self.b3, hidden, self.w3)[:, 0]
        largest = bands.amax(1, keepdim=True)  # log-sum-exp by hand: the library's takes five times as long for few images
        energy = (bands - largest).exp_().sum(1).log_().add_(largest[:, 0])
        return torch.add(shape, energy, alpha=ENERGY_WEIGHT)

    def features(self, images: Tensor, reconstructions: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> whitened residuals [N, K], log band energies in local standard deviations [N, B], standardised embeddings."""
        z = self._standardised(embeddings)
        mean, band_mean, band_std = (self._near(z) @ self._of_regions).split(self._of_regions_widths, 1)  # type: ignore[no-untyped-call]
        residuals = images - reconstructions
        along = residuals @ self.directions  # [N, K]
        whole = torch.linalg.vector_norm(residuals, dim=1).square()
        rest = (whole - along.square() @ self.variance) / (residuals.shape[1] - BANDS[-1])
        relative = whole / torch.linalg.vector_norm(images + 1, dim=1).square().add_(1)
        whitened = along - mean
        energies = [whitened.square() @ self._in_bands, rest[:, None], relative[:, None]]
        log_energy = torch.cat(energies, 1).clamp(min=1e-6).log()  # [N, B]
        return whitened, (log_energy - band_mean) / band_std, z

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        return {field.name: getattr(self, field.name).cpu().numpy() for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[np.float32]]) -> Self:
        """What `arrays()` gave -> the scorer. Raises KeyError or ValueError where it is not that."""
        scorer = cls(**{field.name: torch.from_numpy(arrays[field.name].astype(np.float32)) for field in fields(cls)})
        if any(not bool(torch.isfinite(tensor).all()) for tensor in vars(scorer).values()):
            raise ValueError("the scorer holds numbers that are not finite")
        regions = len(scorer.centres)
        if scorer.band_mean.shape != (regions, ENERGIES) or scorer.mean.shape != (regions, BANDS[-1]):
            raise ValueError("the scorer was fitted by another version of this program")
        return scorer

    def to(self, device: torch.device) -> Self:
        return type(self)(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    @cached_property
    def _of_regions(self) -> Tensor:
        """[M, K + 2 B]: what is blended between regions, side by side, since small products cost more than large ones."""
        return torch.cat([self.mean, self.band_mean, self.band_std], 1)

    @property
    def _of_regions_widths(self) -> list[int]:
        return [self.mean.shape[1], self.band_mean.shape[1], self.band_std.shape[1]]

    @cached_property
    def _in_bands(self) -> Tensor:
        """[K, B - 1]: averages over the directions of each band."""
        averages = torch.zeros(BANDS[-1], len(BANDS) - 1, device=self.mean.device)
        for band, (first, last) in enumerate(pairwise(BANDS)):
            averages[first:last, band] = 1 / (last - first)
        return averages

    def _standardised(self, embeddings: Tensor) -> Tensor:
        return (embeddings - self.location) / self.scale

    def _near(self, z: Tensor) -> Tensor:
        return near(z, self.centres, self.widths)


def near(z: Tensor, centres: Tensor, widths: Tensor) -> Tensor:
    """[N, M], rows sum to 1: how much each region speaks for each embedding, by a Gaussian kernel."""
    distances = torch.cdist(z, centres, compute_mode="donot_use_mm_for_euclid_dist")  # exact, however near
    return (distances / widths).square_().mul_(-0.5).softmax(1)


def inputs(whitened: Tensor, bands: Tensor, z: Tensor) -> Tensor:
    """What the network reads: [N, K + B + 2]; far-off values are cut, where it has learnt nothing."""
    return torch.cat([whitened, bands.clamp(-4, 8), z.clamp(-6, 6)], 1)
