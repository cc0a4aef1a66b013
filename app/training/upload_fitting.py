"""Fitting of the upload scorer: normal images in, its statistics and networks out. Uses no other data than normal images.

The networks learn from synthetic uploads: normal images and synthetic anomalies, drawn on pages and prepared as uploads are,
and pictures of things.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor

from app.detection.imaging.upload_features import SCORED_FEATURES
from app.detection.upload_networks import STRIDE, WEIGHTS, ConvolutionalNetwork, SmallNetwork, UploadNetworks, scale_features
from app.detection.upload_scorer import UploadScorer
from app.network.detector_network import DetectorNetwork
from app.network.mse_scorer import MseScorer
from app.training.datasets import LabelledImages
from app.training.progress import SILENT, Advance, Progress, no_steps
from app.training.scorer_fitting import Source, dense_layers, dense_log_odds, score_images, train_classifier
from app.training.synthetic.anomalies import Transform, augment_normal, synthetic_anomaly, vary_pen
from app.training.synthetic.uploads import Uploads, synthesise_pictures, synthesise_uploads

Pixels = NDArray[np.uint8]

# Synthetic uploads of normal images, and the same number of synthetic anomalies. With 16,000, 2 % fewer anomalies are caught.
UPLOADS = 32_000
MAX_COPIES = 4  # largest number of uploads of one image
PICTURES = 3_000
UNPREPARED_COPIES = 2  # of each image as it is, varied
DIGIT_NETWORKS = 2
CHANNELS, KERNELS, DIGIT_LAYERS = (16, 32), (5, 3), (64,)  # of a digit network
PICTURE_LAYERS = (32, 16)
MIN_STEPS, MAX_STEPS, UPLOADS_PER_STEP = 300, 4_000, 4  # fewer steps for small sets, which would be overfitted
PICTURE_STEPS = 1_500
PIXEL_NOISE, FEATURE_NOISE = 0.05, 0.1  # added to the inputs in training, so that the networks do not learn single examples
LEARNING_RATE = 2e-3
DIGIT_DECAY, PICTURE_DECAY = 0.05, 0.3  # weight decay
MIN_FEATURE_STD = 0.05
_CHUNK = 10_000


def fit_upload_scorer(
    network: DetectorNetwork, normal: LabelledImages, seed: int, progress: Progress = SILENT
) -> UploadScorer | None:
    """Fit the scorer of uploads on normal images; None for the plain error, which has no upload scorer."""
    if isinstance(network.scorer, MseScorer):
        return None
    g = torch.Generator().manual_seed(seed)
    count = min(UPLOADS, MAX_COPIES * len(normal))
    chosen = normal.take(np.arange(count) % len(normal))
    advance = progress.begin("Drawing uploads", (2 if normal.features is None else 1) * count + min(PICTURES, count))
    uploads = uploads_of(chosen, seed, advance)
    anomalies = synthesise_uploads(_vary(chosen.images, synthetic_anomaly, g), seed=seed + 1, readable=False, advance=advance)
    pictures = synthesise_pictures(min(PICTURES, count), size=normal.images.shape[-1], seed=seed + 2, advance=advance)
    advance = progress.begin("Fitting the upload networks", DIGIT_NETWORKS * _digit_steps(count) + PICTURE_STEPS)
    sources = _digit_sources(normal.images, uploads.images, anomalies.images, pictures.images, g)
    digits = tuple(_fit_digit_network(sources, _digit_steps(count), g, advance) for _ in range(DIGIT_NETWORKS))
    return UploadScorer.fit(
        score_images(network, uploads.images), uploads.features, _fit_networks(digits, uploads, pictures, g, advance)
    )


def uploads_of(images: LabelledImages, seed: int, advance: Advance = no_steps) -> Uploads:
    """Prepared uploads as they are, other images redrawn as uploads."""
    if images.features is not None:
        return Uploads(images.images, images.features)
    return synthesise_uploads(images.images, seed=seed, advance=advance)


def _digit_sources(images: Pixels, uploads: Pixels, anomalies: Pixels, pictures: Pixels, g: Generator) -> tuple[Source, ...]:
    """The training examples of a digit network: prepared uploads with other pens, and unprepared images, which vary more."""
    unprepared = np.concatenate([images] * UNPREPARED_COPIES)
    return (
        Source(_flat(uploads, _vary(uploads, vary_pen, g)), 0.25, 0.0),
        Source(_flat(_vary(unprepared, augment_normal, g)), 0.25, 0.0),
        Source(_flat(anomalies, _vary(anomalies, vary_pen, g)), 0.22, 1.0),
        Source(_flat(_vary(unprepared, synthetic_anomaly, g)), 0.22, 1.0),
        Source(_flat(pictures), 0.06, 1.0),
    )


def _fit_digit_network(sources: Sequence[Source], steps: int, g: Generator, advance: Advance) -> ConvolutionalNetwork:
    """Fit from a random start, by a random order of the examples."""

    def prepare(pixels: Tensor) -> Tensor:
        return pixels.float() / 255 + PIXEL_NOISE * torch.randn(pixels.shape, generator=g)

    side, channels = math.isqrt(sources[0].inputs.shape[1]), (1, *CHANNELS)
    for size in KERNELS:
        side = (side - size) // STRIDE + 1
    parameters = []
    for size, (given, made) in zip(KERNELS, pairwise(channels), strict=True):
        deviation = math.sqrt(2 / (given * size * size))
        parameters += [torch.randn(given, size, size, made, generator=g) * deviation, torch.zeros(made)]
    parameters += dense_layers((side * side * CHANNELS[-1], *DIGIT_LAYERS, 1), g)
    trained = train_classifier(
        sources,
        parameters,
        _convolutional_log_odds,
        steps,
        g,
        prepare=prepare,
        learning_rate=LEARNING_RATE,
        weight_decay=DIGIT_DECAY,
        advance=advance,
    )
    first = 2 * len(KERNELS)
    arrays = [tensor.numpy() for tensor in trained[:first]]
    return ConvolutionalNetwork(tuple(arrays[0::2]), tuple(arrays[1::2]), _small_network(trained[first:]))


def _convolutional_log_odds(pixels: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The output [N] of a `ConvolutionalNetwork` for pixels [N, S * S]."""
    side, first = math.isqrt(pixels.shape[1]), 2 * len(KERNELS)
    values = pixels.view(-1, 1, side, side)
    for kernel, bias in zip(parameters[0:first:2], parameters[1:first:2], strict=True):
        values = torch.relu(F.conv2d(values, kernel.permute(3, 0, 1, 2), bias, stride=STRIDE))
    return dense_log_odds(values.permute(0, 2, 3, 1).flatten(1), parameters[first:])


def _digit_steps(uploads: int) -> int:
    return min(MAX_STEPS, max(MIN_STEPS, uploads // UPLOADS_PER_STEP))


def _fit_networks(
    digits: tuple[ConvolutionalNetwork, ...], uploads: Uploads, pictures: Uploads, g: Generator, advance: Advance
) -> UploadNetworks:
    """Fit the picture network, and put it together with the digit networks."""
    features = uploads.features[:, SCORED_FEATURES]
    mean, std = features.mean(axis=0), np.maximum(features.std(axis=0), MIN_FEATURE_STD)
    normal, unusual = (torch.from_numpy(scale_features(each.features, mean, std)) for each in (uploads, pictures))

    def prepare(inputs: Tensor) -> Tensor:
        return inputs + FEATURE_NOISE * torch.randn(inputs.shape, generator=g)

    sources = (Source(normal, 0.6, 0.0), Source(unusual, 0.4, 1.0))
    trained = train_classifier(
        sources,
        dense_layers((normal.shape[1], *PICTURE_LAYERS, 1), g),
        dense_log_odds,
        PICTURE_STEPS,
        g,
        prepare=prepare,
        learning_rate=LEARNING_RATE,
        weight_decay=PICTURE_DECAY,
        advance=advance,
    )
    return UploadNetworks(digits, _small_network(trained), mean, std, np.asarray(WEIGHTS, np.float32))


def _small_network(trained: list[Tensor]) -> SmallNetwork:
    arrays = [tensor.numpy() for tensor in trained]
    return SmallNetwork(tuple(arrays[0::2]), tuple(arrays[1::2]))


def _flat(*images: Pixels) -> Tensor:
    """Images [N, S, S] -> uint8 [N in all, S * S]."""
    return torch.from_numpy(np.concatenate([part.reshape(len(part), -1) for part in images]))


def _vary(images: Pixels, change: Transform, g: Generator) -> Pixels:
    """Apply a transform of synthetic/anomalies.py to uint8 images [N, S, S]."""
    side = images.shape[-1]
    parts = torch.split(torch.tensor(images).view(-1, 1, side, side), _CHUNK)
    changed = [change(part.float() / 127.5 - 1, g).clamp(-1, 1) for part in parts]
    return np.concatenate([((part[:, 0] + 1) * 127.5).round().to(torch.uint8).numpy() for part in changed])
