"""The residual scorer: how unusual is a residual among the residuals of normal images with similar embeddings?

The mean squared residual misses many anomalies. The residuals of normal images are large along a few directions (the edges
of strokes) and tiny along the others, so an unusual residual hides among large usual ones; and a blank image has a smaller
error than most digits. This scorer subtracts the mean residual of the neighbourhood in the latent plane, measures the rest
along its principal directions, and adds two terms:

1. energy: the residual's energy in five bands of directions, and its whole energy relative to the image's own ink. Each is a
   logarithm in standard deviations of the neighbourhood. They are joined by a smooth maximum, so one large term is enough.
2. shape: the log-odds, from a small network, that the image is a synthetic anomaly rather than a normal image. It weighs the
   directions that normal images alone cannot rank, and reads the activations of the encoder's first layer, which tell it of the
   image itself at hardly any cost.

Fitting is in training/scorer_fitting.py. Regions of the latent plane are blended by a Gaussian kernel, so the score is
continuous, and everything is low-rank, so it costs less than the autoencoder.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.network.autoencoder import ForwardPass
from app.network.mse_scorer import sum_of_squares

BANDS = (0, 12, 24, 48, 96)  # borders of the bands of principal directions
ENERGIES = len(BANDS) + 1  # one for each band, one for the rest of the space, one relative to the image's ink
OLDER_RELEASES = {"energy": (2.0, 1.0), "shape_range": (-1e6, 1e6)}  # their versions do not hold these tensors
MIN_PIXEL_STD = 0.05  # in [-1, 1] units: an error map treats smaller residuals as usual

# Fitted tensors, float32: M regions of the latent space, L dimensions of it, K directions of the P pixels, B = ENERGIES,
# U units of the encoder's first layer, H hidden units of the shape network.
SHAPES = {
    "location": "[L] mean of the embeddings",
    "scale": "[L] their standard deviation",
    "centres": "[M, L] of the regions, in standardised embeddings",
    "widths": "[M] distance of each centre to its nearest neighbour",
    "pixel_mean": "[M, P] mean residual of each region",
    "pixel_std": "[M, P] its standard deviation",
    "directions": "[P, K] principal directions, each divided by its shrunk standard deviation",
    "variance": "[K] those standard deviations, squared",
    "mean": "[M, K] pixel_mean along the directions",
    "band_mean": "[M, B] log energy of each band in each region",
    "band_std": "[M, B] its standard deviation",
    "shape_range": "[2] smallest and largest log-odds of the shape network that count",
    "energy": "[2] weight and sharpness of the energy term, see `unscaled_score`",
    "w1": "[K + B + L + U, H] the shape network: inputs -> H -> H -> 1",
    "b1": "[H]",
    "w2": "[H, H]",
    "b2": "[H]",
    "w3": "[H, 1]",
    "b3": "[1]",
    "centre": "[] median of the unscaled score over the fitted images",
    "spread": "[] its standard deviation",
}


class Features(NamedTuple):
    """Measures of N residuals."""

    whitened: Tensor  # [N, K] along the principal directions, in standard deviations
    bands: Tensor  # [N, B] logarithms of the energies, in standard deviations of the neighbourhood
    z: Tensor  # [N, L] standardised embeddings


class ResidualScorer(nn.Module):
    """Scores residuals; the fitted tensors are buffers with the names of `SHAPES`."""

    name: ClassVar[str] = "residual"

    if TYPE_CHECKING:  # every buffer is a tensor

        def __getattr__(self, name: str) -> Tensor: ...

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """`tensors` holds every name of `SHAPES`.

        Raises:
            KeyError: a tensor is missing.
            ValueError: a tensor is not finite, or was fitted with other bands.
        """
        super().__init__()
        tensors = {**{name: torch.tensor(values) for name, values in OLDER_RELEASES.items()}, **tensors}
        for name in SHAPES:
            tensor = tensors[name].detach().float()
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"the scorer's {name} holds numbers that are not finite")
            self.register_buffer(name, tensor)
        regions = len(self.centres)
        if self.band_mean.shape != (regions, ENERGIES) or self.mean.shape != (regions, BANDS[-1]):
            raise ValueError("the scorer was fitted by another version of this program")
        # One product with the statistics side by side is cheaper than three small ones: [M, K + 2 B].
        statistics = torch.cat([self.mean, self.band_mean, self.band_std], 1)
        self.register_buffer("region_statistics", statistics, persistent=False)
        self.register_buffer("band_averages", _band_averages().to(self.mean.device), persistent=False)

    def tensors(self) -> dict[str, Tensor]:
        """The fitted tensors by name, as `__init__` takes them."""
        return {name: getattr(self, name) for name in SHAPES}

    def forward(self, out: ForwardPass) -> Tensor:
        """-> scores [N], > 0.

        1 for the median normal image, and about 1.44 (1 / ln 2) more for each further standard deviation.
        """
        deviations = (self.unscaled_score(out) - self.centre) / self.spread
        # Softplus: log1p(u) is written as 2 atanh(u / (2 + u)), because ONNX has no log1p and log(1 + u) loses small scores.
        small = torch.exp(-deviations.abs())
        return (F.relu(deviations) + 2 * torch.atanh(small / (2 + small))) / math.log(2)

    def error_map(self, out: ForwardPass) -> Tensor:
        """-> [N, P]: the absolute residual of each pixel in standard deviations of its neighbourhood."""
        weights = self.region_weights(out.embeddings)
        residuals = out.images - out.reconstructions - weights @ self.pixel_mean
        return residuals.abs() / (weights @ self.pixel_std).clamp(min=MIN_PIXEL_STD)

    def unscaled_score(self, out: ForwardPass) -> Tensor:
        """-> [N]: the log-odds of the shape network plus the weighted energy, before `centre` and `spread` are applied."""
        features = self.features(out)
        inputs = shape_inputs(features, out.hidden)[:, : len(self.w1)]  # versions of older releases do not read `hidden`
        hidden = F.relu(torch.addmm(self.b1, inputs, self.w1))
        hidden = F.relu(torch.addmm(self.b2, hidden, self.w2))
        shape = torch.addmm(self.b3, hidden, self.w3)[:, 0]
        weight, sharpness = self.energy
        energy = torch.logsumexp(features.bands * sharpness, 1) / sharpness  # a smooth maximum
        unscaled: Tensor = shape.clamp(*self.shape_range) + weight * energy
        return unscaled

    def features(self, out: ForwardPass) -> Features:
        """Measure the residuals in their neighbourhoods."""
        images = out.images
        z = self.standardise(out.embeddings)
        local = region_weights(z, self.centres, self.widths) @ self.region_statistics  # [N, K + 2 B]
        local_mean, local_band_mean, local_band_std = torch.split(local, [BANDS[-1], ENERGIES, ENERGIES], 1)
        residuals = images - out.reconstructions
        along = residuals @ self.directions  # [N, K]
        whole = sum_of_squares(residuals)
        rest = (whole - (along * along) @ self.variance) / (residuals.shape[1] - BANDS[-1])
        relative = whole / (sum_of_squares(images + 1) + 1)
        whitened = along - local_mean
        energies = [(whitened * whitened) @ self.band_averages, rest[:, None], relative[:, None]]
        log_energy = torch.cat(energies, 1).clamp(min=1e-6).log()  # [N, B]
        return Features(whitened, (log_energy - local_band_mean) / local_band_std, z)

    def standardise(self, embeddings: Tensor) -> Tensor:
        """Embeddings [N, L] -> zero mean and unit variance over the fitted images."""
        return (embeddings - self.location) / self.scale

    def region_weights(self, embeddings: Tensor) -> Tensor:
        """Embeddings [N, L] -> the weight of each region for each image, [N, M]."""
        return region_weights(self.standardise(embeddings), self.centres, self.widths)


def region_weights(z: Tensor, centres: Tensor, widths: Tensor) -> Tensor:
    """Gaussian kernel: standardised embeddings [N, L] -> weights [N, M] whose rows sum to 1."""
    differences = z[:, :, None] - centres.T  # [N, L, M]; subtracting first is exact for near points too
    return torch.softmax(sum_of_squares(differences) / (-2 * widths * widths), 1)


def shape_inputs(features: Features, hidden: Tensor) -> Tensor:
    """The inputs of the shape network, [N, K + B + L + U]; bands and embeddings far outside its training range are clipped."""
    return torch.cat([features.whitened, features.bands.clamp(-4, 8), features.z.clamp(-6, 6), hidden], 1)


def _band_averages() -> Tensor:
    """[K, B - 2]: a product with it averages over the directions of each band."""
    averages = torch.zeros(BANDS[-1], len(BANDS) - 1)
    for band, (first, last) in enumerate(pairwise(BANDS)):
        averages[first:last, band] = 1 / (last - first)
    return averages
