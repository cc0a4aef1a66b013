"""Fitting of scorers: a trained autoencoder and the images that it was trained on in, a scorer out. Uses normal images only.

The residual scorer's shape network also needs anomalies; they are synthetic, made from the normal images
(synthetic/anomalies.py). The sizes below were chosen once; larger ones gained little for their cost.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor

from app.network.autoencoder import Autoencoder, ForwardPass
from app.network.detector_network import DetectorNetwork, Scorer
from app.network.mse_scorer import MseScorer
from app.network.residual_scorer import BANDS, ENERGIES, ResidualScorer, region_weights, shape_inputs
from app.training.config import TrainingError
from app.training.progress import SILENT, Advance, Progress, no_steps
from app.training.synthetic.anomalies import Transform, augment_normal, synthetic_anomaly

REGIONS, DIRECTIONS, HIDDEN = 64, BANDS[-1], (192, 64)
IMAGES_PER_REGION = 80  # with fewer images a region's statistics are noise
ENERGY = (2.5, 3.0)  # weight and sharpness; with a sharpness of 1, 1 % fewer anomalies are caught
# The shape network is more certain than this only of images unlike those that it was trained on. The lower bound lets the
# energy decide there; with the upper bound 1.4 % of USPS digits are flagged rather than 1.6 %.
SHAPE_RANGE = (-8.0, 4.5)
RIDGE = 0.3  # added to each direction's variance, in mean variances of a direction
FIT_IMAGES, CHUNK = 60_000, 10_000  # most images used; images in one forward pass

# Training of the shape network
BATCH = 512  # images in one step
MAX_SYNTHETIC, PASSES = 250_000, 4  # synthetic images of each kind, at most; how often each is used, at least
MIN_STEPS, MAX_STEPS, IMAGES_PER_STEP = 300, 6_000, 7  # fewer steps for small sets, which would be overfitted
PEAK_LEARNING_RATE, WEIGHT_DECAY = 4e-3, 0.1

SHAPE_NETWORK = ("w1", "b1", "w2", "b2", "w3", "b3")

Tensors = dict[str, Tensor]


class Source(NamedTuple):
    """Training examples of a classifier."""

    inputs: Tensor  # [N, I]
    share: float  # of each batch
    label: float  # 0 = normal, 1 = anomalous


def fit_scorer(name: str, model: Autoencoder, images: Tensor, *, seed: int, progress: Progress = SILENT) -> Scorer:
    """Fit the scorer called `name`, residual or mse, on the normal images [N, P] that `model` was trained on.

    The images and the scorer are on the CPU, to which the model is moved. Deterministic for a seed.
    """
    model.cpu()
    return MseScorer() if name == MseScorer.name else fit_residual_scorer(model, images, seed=seed, progress=progress)


def fit_residual_scorer(model: Autoencoder, images: Tensor, *, seed: int, progress: Progress = SILENT) -> ResidualScorer:
    """Fit the tensors of network/residual_scorer.py. On the CPU, whose random generators are the same on every machine."""
    g = torch.Generator().manual_seed(seed)
    images = images[torch.randperm(len(images), generator=g)[:FIT_IMAGES]]
    fitted = forward(model, images)
    regions = _fit_regions(fitted.embeddings, g)
    scorer = _unfitted({**regions, **_residual_statistics(fitted, regions)})
    scorer = _replace(scorer, _band_statistics(fitted, scorer))
    steps = min(MAX_STEPS, max(MIN_STEPS, len(images) // IMAGES_PER_STEP))
    advance = progress.begin("Making synthetic images", sum(_synthetic_count(steps, share) for share in (0.5, 0.4)))
    synthetic = partial(_synthetic_source, scorer, model, images, steps, g=g, advance=advance)
    # Normal images are mostly varied ones. With half of them as they are, 2.2 % of USPS digits were flagged rather than 1.4 %.
    sources = (
        Source(_shape_inputs(scorer, fitted), 0.1, 0.0),
        synthetic(augment_normal, 0.5, 0.0),
        synthetic(synthetic_anomaly, 0.4, 1.0),
    )
    advance = progress.begin("Fitting the scorer", steps)
    layers = dense_layers((sources[0].inputs.shape[1], *HIDDEN, 1), g)
    trained = train_classifier(sources, layers, dense_log_odds, steps, g, advance=advance)
    network = dict(zip(SHAPE_NETWORK, trained, strict=True))
    scorer = _replace(scorer, network)
    unscaled = _in_chunks(scorer.unscaled_score, fitted)
    return _replace(scorer, {"centre": unscaled.median(), "spread": unscaled.std()})


@torch.inference_mode()
def forward(model: Autoencoder, images: Tensor) -> ForwardPass:
    """Run the autoencoder on images [N, P]."""
    chunks = [model.run(chunk) for chunk in torch.split(images, CHUNK)]
    return ForwardPass(*(torch.cat(column) for column in zip(*chunks, strict=True)))


@torch.inference_mode()
def score_images(network: DetectorNetwork, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Scores [N] of images [N, S, S], by torch on the network's device."""
    device = next(network.parameters()).device
    chunks = [torch.tensor(images[start : start + CHUNK]).to(device) for start in range(0, len(images), CHUNK)]
    return np.concatenate([network.score(chunk)[0].cpu().numpy() for chunk in chunks])


def _unfitted(tensors: Tensors) -> ResidualScorer:
    """A scorer with fitted regions and directions; the rest is neutral until it is fitted."""
    regions = len(tensors["centres"])
    neutral = {
        "band_mean": torch.zeros(regions, ENERGIES),
        "band_std": torch.ones(regions, ENERGIES),
        **{name: torch.zeros(()) for name in (*SHAPE_NETWORK, "centre")},
        "shape_range": torch.tensor(SHAPE_RANGE),
        "energy": torch.tensor(ENERGY),
        "spread": torch.ones(()),
    }
    return ResidualScorer({**neutral, **tensors})


def _replace(scorer: ResidualScorer, tensors: Tensors) -> ResidualScorer:
    return ResidualScorer({**scorer.tensors(), **tensors})


def _fit_regions(embeddings: Tensor, g: Generator) -> Tensors:
    """Regions of the latent plane, by k-means. Raises TrainingError: all embeddings are equal."""
    location, scale = embeddings.mean(0), embeddings.std(0, correction=min(1, len(embeddings) - 1)).clamp(min=1e-6)
    z = (embeddings - location) / scale
    centres = _k_means(z, min(REGIONS, max(2, len(z) // IMAGES_PER_REGION)), g)
    if len(centres) < 2:  # also of one image
        raise TrainingError("The network gives every image the same embedding; use other images or a smaller --learning-rate.")
    distances = torch.cdist(centres, centres).fill_diagonal_(math.inf)
    return {"location": location, "scale": scale, "centres": centres, "widths": distances.amin(1).clamp(min=1e-3)}


def _residual_statistics(fitted: ForwardPass, regions: Tensors) -> Tensors:
    """Mean and standard deviation of the residuals in each region, and the principal directions of the rest."""
    z = (fitted.embeddings - regions["location"]) / regions["scale"]
    weights, shares = _blend(z, regions["centres"], regions["widths"])
    residuals = fitted.images - fitted.reconstructions
    pixel_mean = shares @ residuals
    centred = residuals - weights @ pixel_mean
    pixel_std = (shares @ centred.square()).sqrt().clamp(min=1e-6)  # 0 where the decoder is saturated
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    variance = values.flip(0)[:DIRECTIONS] + RIDGE * values.mean()
    directions = vectors.flip(1)[:, :DIRECTIONS] / variance.sqrt()
    return {
        "pixel_mean": pixel_mean,
        "pixel_std": pixel_std,
        "variance": variance,
        "directions": directions,
        "mean": pixel_mean @ directions,
    }


def _band_statistics(fitted: ForwardPass, scorer: ResidualScorer) -> Tensors:
    """Mean and standard deviation of the log energy of each band in each region."""
    weights, shares = _blend(scorer.standardise(fitted.embeddings), scorer.centres, scorer.widths)
    log_energy = _in_chunks(lambda chunk: scorer.features(chunk).bands, fitted)
    band_mean = shares @ log_energy
    band_std = (shares @ (log_energy - weights @ band_mean).square()).sqrt().clamp(min=1e-3)
    return {"band_mean": band_mean, "band_std": band_std}


def train_classifier(
    sources: Sequence[Source],
    parameters: list[Tensor],
    log_odds: Callable[[Tensor, Sequence[Tensor]], Tensor],
    steps: int,
    g: Generator,
    *,
    prepare: Callable[[Tensor], Tensor] | None = None,
    learning_rate: float = PEAK_LEARNING_RATE,
    weight_decay: float = WEIGHT_DECAY,
    advance: Advance = no_steps,
) -> list[Tensor]:
    """Logistic regression: changes the parameters of `log_odds`, which maps inputs [N, I] to log-odds [N], and returns them.

    Each batch draws from the sources by their shares; `prepare` turns the examples of a batch into inputs.
    """
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.AdamW(parameters, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    counts = [int(BATCH * source.share) for source in sources]
    labels = torch.cat([torch.full((n,), source.label) for n, source in zip(counts, sources, strict=True)])
    for _ in range(steps):
        drawn = [
            source.inputs[torch.randint(len(source.inputs), (n,), generator=g)]
            for n, source in zip(counts, sources, strict=True)
        ]
        values = torch.cat(drawn) if prepare is None else prepare(torch.cat(drawn))
        loss = F.binary_cross_entropy_with_logits(log_odds(values, parameters), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        advance(1)
    return [parameter.detach() for parameter in parameters]


def dense_layers(widths: Sequence[int], g: Generator) -> list[Tensor]:
    """Weights and biases in turn of a fully connected network, those of the first layer first (He et al., 2015)."""
    weights = [torch.randn(i, o, generator=g) * math.sqrt(2 / i) for i, o in pairwise(widths)]
    return [tensor for weight in weights for tensor in (weight, torch.zeros(weight.shape[1]))]


def dense_log_odds(values: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The output [N] of a fully connected network with ReLU for inputs [N, I]."""
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        values = torch.relu(values @ weight + bias)
    return (values @ parameters[-2] + parameters[-1])[:, 0]


def _shape_inputs(scorer: ResidualScorer, fitted: ForwardPass) -> Tensor:
    return _in_chunks(lambda chunk: shape_inputs(scorer.features(chunk), chunk.hidden), fitted)


def _synthetic_source(
    scorer: ResidualScorer,
    model: Autoencoder,
    images: Tensor,
    steps: int,
    change: Transform,
    share: float,
    label: float,
    *,
    g: Generator,
    advance: Advance,
) -> Source:
    """Take `images` in order, repeated as often as `steps` need, and apply `change`."""
    side = math.isqrt(images.shape[1])
    inputs = []
    for part in torch.split(torch.arange(_synthetic_count(steps, share)) % len(images), CHUNK):
        made = change(images[part].view(-1, 1, side, side), g).reshape(len(part), -1)
        inputs.append(_shape_inputs(scorer, forward(model, made)))
        advance(len(part))
    return Source(torch.cat(inputs), share, label)


def _synthetic_count(steps: int, share: float) -> int:
    return min(MAX_SYNTHETIC, int(steps * BATCH * share / PASSES))


def _in_chunks(read: Callable[[ForwardPass], Tensor], fitted: ForwardPass) -> Tensor:
    with torch.no_grad():
        columns = (torch.split(tensor, CHUNK) for tensor in fitted)
        return torch.cat([read(ForwardPass(*chunk)) for chunk in zip(*columns, strict=True)])


def _blend(z: Tensor, centres: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
    """Standardised embeddings [N, L] -> each region's weight for an image [N, M], each image's share in a region [M, N]."""
    weights = torch.cat([region_weights(part, centres, widths) for part in torch.split(z, CHUNK)])
    return weights, (weights / weights.sum(0)).T


def _k_means(points: Tensor, k: int, g: Generator, rounds: int = 25) -> Tensor:
    centres = points[torch.randperm(len(points), generator=g)[:k]].clone()
    for _ in range(rounds):
        nearest = torch.cdist(points, centres).argmin(1)
        count = torch.bincount(nearest, minlength=len(centres)).clamp(min=1)
        centres = torch.zeros_like(centres).index_add_(0, nearest, points) / count[:, None]
    return centres[torch.bincount(nearest, minlength=len(centres)) > 0]  # where many points are equal, some centres have none
