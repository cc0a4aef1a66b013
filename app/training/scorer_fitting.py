"""Fitting scorers: a trained network and the images that it was trained on in, a scorer out. Sees normal images only.

The residual scorer's network also sees strangers, made from the normal images (strangers.py). Sizes are fixed: they were
chosen once, and larger ones gained little for what they cost.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from app.network.autoencoder import Autoencoder
from app.network.residual_scorer import BANDS, ENERGIES, ResidualScorer, inputs, near
from app.network.scoring import MseScorer, Scorer
from app.training.synthetic.anomalies import Change, augment_normal, synthetic_anomaly

SCORERS = (ResidualScorer.name, MseScorer.name)

REGIONS, DIRECTIONS, HIDDEN = 64, BANDS[-1], 64
IMAGES_A_REGION = 80  # fewer, and a region's statistics are noise
RIDGE = 0.3  # added to each direction's variance, in mean variances of a direction
DRAWS, BATCH = 100_000, 512  # made images of each kind; of the shape's training
STEPS, IMAGES_A_STEP = (300, 2_400), 10  # fewest and most; in between so many images a step, or small sets are learnt by heart
FIT_IMAGES, CHUNK = 60_000, 10_000  # at most; at once
PEAK_LEARNING_RATE, WEIGHT_DECAY = 4e-3, 0.1


class Seen(NamedTuple):
    """Images and what the network makes of them."""

    images: Tensor  # [N, P]
    reconstructions: Tensor  # [N, P]
    embeddings: Tensor  # [N, latent_dim]


def fit_scorer(name: str, model: Autoencoder, images: Tensor, *, seed: int) -> Scorer:
    """Fit the scorer called `name` on the normal images [N, P] that `model` learnt from; deterministic for a seed.

    Raises:
        ValueError: no scorer has that name.
    """
    if name == MseScorer.name:
        return MseScorer()
    if name == ResidualScorer.name:
        device = images.device
        return fit_residual_scorer(model.cpu(), images.cpu(), seed=seed).to(device)
    raise ValueError(f"There is no scorer named {name!r}; choose one of: {', '.join(SCORERS)}.")


def fit_residual_scorer(model: Autoencoder, images: Tensor, *, seed: int) -> ResidualScorer:
    """See detection/residual.py for what is fitted. On the CPU, whose generators repeat themselves from machine to machine."""
    g = torch.Generator().manual_seed(seed)
    images = images[torch.randperm(len(images), generator=g)[:FIT_IMAGES]]
    seen = _look(model, images)
    scorer = ResidualScorer(**{field.name: torch.zeros(()) for field in fields(ResidualScorer)})
    scorer = replace(scorer, **_regions(seen.embeddings, g))
    scorer = replace(scorer, **_residual_statistics(seen, scorer))
    scorer = replace(scorer, **_band_statistics(seen, scorer))
    sources = (
        (_inputs(scorer, seen), 1, 0.0),
        (_inputs_of_made(scorer, model, images, augment_normal, g), 1, 0.0),
        (_inputs_of_made(scorer, model, images, synthetic_anomaly, g), 2, 1.0),
    )
    fewest, most = STEPS
    steps = min(most, max(fewest, len(images) // IMAGES_A_STEP))
    scorer = replace(scorer, **_learn_shape(sources, steps, g))
    evidence = _in_chunks(scorer.evidence, seen)
    return replace(scorer, centre=evidence.median(), spread=evidence.std())


def _regions(embeddings: Tensor, g: Generator) -> dict[str, Tensor]:
    """Neighbourhoods of the latent plane, by k-means."""
    location, scale = embeddings.mean(0), embeddings.std(0).clamp(min=1e-6)
    z = (embeddings - location) / scale
    centres = _k_means(z, min(REGIONS, max(2, len(z) // IMAGES_A_REGION)), g)
    apart = torch.cdist(centres, centres).fill_diagonal_(math.inf)
    return {"location": location, "scale": scale, "centres": centres, "widths": apart.amin(1).clamp(min=1e-3)}


def _residual_statistics(seen: Seen, scorer: ResidualScorer) -> dict[str, Tensor]:
    """Mean and spread of the residuals in each region, and the principal directions of what is left."""
    near, share = _shares(seen.embeddings, scorer)
    residuals = seen.images - seen.reconstructions
    pixel_mean = share @ residuals
    centred = residuals - near @ pixel_mean
    pixel_std = (share @ centred.square()).sqrt()
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


def _band_statistics(seen: Seen, scorer: ResidualScorer) -> dict[str, Tensor]:
    """Mean and spread of the log energy of each band in each region."""
    regions = len(scorer.centres)
    plain = replace(scorer, band_mean=torch.zeros(regions, ENERGIES), band_std=torch.ones(regions, ENERGIES))
    near, share = _shares(seen.embeddings, scorer)
    log_energy = _in_chunks(lambda *chunk: plain.features(*chunk)[1], seen)
    band_mean = share @ log_energy
    band_std = (share @ (log_energy - near @ band_mean).square()).sqrt().clamp(min=1e-3)
    return {"band_mean": band_mean, "band_std": band_std}


def _learn_shape(sources: Sequence[tuple[Tensor, int, float]], steps: int, g: Generator) -> dict[str, Tensor]:
    """Logistic regression by a small network. Each batch draws from the sources (inputs, share, label) by their shares."""
    widths = (sources[0][0].shape[1], HIDDEN, HIDDEN, 1)
    weights = [(torch.randn(i, o, generator=g) * math.sqrt(2 / i)).requires_grad_() for i, o in pairwise(widths)]
    biases = [torch.zeros(o, requires_grad=True) for o in widths[1:]]
    optimizer = torch.optim.AdamW(weights + biases, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    whole = sum(share for _, share, _ in sources)
    counts = [BATCH * share // whole for _, share, _ in sources]
    labels = torch.cat([torch.full((n,), label) for n, (_, _, label) in zip(counts, sources, strict=True)])
    for _ in range(steps):
        drawn = [x[torch.randint(len(x), (n,), generator=g)] for n, (x, _, _) in zip(counts, sources, strict=True)]
        hidden = torch.cat(drawn)
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            hidden = torch.relu(hidden @ weight + bias)
        loss = F.binary_cross_entropy_with_logits((hidden @ weights[-1] + biases[-1])[:, 0], labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    learnt = [tensor.detach() for pair in zip(weights, biases, strict=True) for tensor in pair]
    return dict(zip(("w1", "b1", "w2", "b2", "w3", "b3"), learnt, strict=True))


@torch.inference_mode()
def _look(model: Autoencoder, images: Tensor) -> Seen:
    embeddings = [model.encode(chunk) for chunk in torch.split(images, CHUNK)]
    reconstructions = [model.decode(chunk) for chunk in embeddings]
    return Seen(images, torch.cat(reconstructions).clone(), torch.cat(embeddings).clone())


def _inputs(scorer: ResidualScorer, seen: Seen) -> Tensor:
    return _in_chunks(lambda *chunk: inputs(*scorer.features(*chunk)), seen)


def _inputs_of_made(scorer: ResidualScorer, model: Autoencoder, images: Tensor, change: Change, g: Generator) -> Tensor:
    """What the scorer's network reads of DRAWS images made from the normal ones."""
    side = math.isqrt(images.shape[1])
    parts = torch.split(torch.arange(DRAWS) % len(images), CHUNK)
    made = (change(images[part].view(-1, 1, side, side), g).reshape(len(part), -1) for part in parts)
    return torch.cat([_inputs(scorer, _look(model, part)) for part in made])


def _in_chunks(read: Callable[..., Tensor], seen: Seen) -> Tensor:
    with torch.no_grad():
        return torch.cat([read(*chunk) for chunk in zip(*(torch.split(tensor, CHUNK) for tensor in seen), strict=True)])


def _shares(embeddings: Tensor, scorer: ResidualScorer) -> tuple[Tensor, Tensor]:
    """How much each region speaks for each image [N, M], and each image's share in a region's mean [M, N]."""
    weights = near((embeddings - scorer.location) / scorer.scale, scorer.centres, scorer.widths)
    return weights, (weights / weights.sum(0)).T


def _k_means(points: Tensor, k: int, g: Generator, rounds: int = 25) -> Tensor:
    centres = points[torch.randperm(len(points), generator=g)[:k]].clone()
    for _ in range(rounds):
        nearest = torch.cdist(points, centres).argmin(1)
        count = torch.bincount(nearest, minlength=len(centres)).clamp(min=1)
        centres = torch.zeros_like(centres).index_add_(0, nearest, points) / count[:, None]
    return centres
