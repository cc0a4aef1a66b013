"""Upload features: a small vector that describes an upload before preprocessing made it look like a digit.

A photograph that is cropped, flattened and centred can look like a digit. Its grey values, its texture and its colours
before that do not. Each feature is a logarithm, so that it is roughly Gaussian over honest uploads; the constant added
inside the logarithm hides small differences between cameras.
"""

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Groups = NDArray[np.int8]
Box = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom exclusive

FEATURE_NAMES = (
    "mid_tones",  # share of the preprocessed ink that is neither dark nor light
    "mass",  # ink of the preprocessed image
    "edges",  # length of its edges over its ink
    "width",  # of the stroke before normalisation, in pixels of the 20-pixel box
    "pieces",  # number of connected components of the digit
    "texture",  # spread of the background near the digit, over the contrast
    "blend",  # share of the variance in and near the digit that two levels, ink and paper, do not explain
    "uneven",  # spread of the intensity of the ink, over the contrast
    "left_out",  # ink that is not part of the digit, over the ink of the digit
    "light",  # range of the background over the contrast
    "colour",  # colour that no mixture of ink and paper explains, over the contrast
    "contrast",  # between ink and paper
    "extent",  # longest side in pixels of the upload, up to 24
    "aspect",  # width over height
    "fill",  # ink over the area of its bounding box
    "size",  # longest side in pixels of the upload
    "bilevel",  # 1 for an image of two grey levels, else 0; not a logarithm
)

_LARGER_IS_UNUSUAL = ("mid_tones", "mass", "width", "pieces", "texture", "blend", "uneven", "left_out", "light", "colour")
_NOT_SCORED = ("contrast", "extent", "size", "bilevel")  # faint ink is as good as dark ink; the others choose the group
ONE_SIDED = tuple(int(name in _LARGER_IS_UNUSUAL) for name in FEATURE_NAMES)  # 1: only larger values are unusual, 0: both
SCORED_FEATURES = np.asarray([name not in _NOT_SCORED for name in FEATURE_NAMES])

GROUPS = ("grey", "grey, small", "bilevel", "bilevel, small", "thin or broken")  # kinds of upload, calibrated apart
SMALL = 24  # pixels: the longest side of smaller digits
THIN = 1.15  # pixels of the 20-pixel box: the width of thinner strokes
EVEN_LIGHT = 0.35  # range of the background over the contrast: less than in most photographs of things


def upload_groups(features: Floats) -> Groups:
    """Return the index in `GROUPS` of each of N uploads, from their features [N, K]: known before an upload is scored."""
    bilevel, size, pieces, width, light = (
        features[:, FEATURE_NAMES.index(name)] for name in ("bilevel", "size", "pieces", "width", "light")
    )
    groups: Groups = (2 * (bilevel > 0.5) + (size < np.log(1 + SMALL))).astype(np.int8)
    worn = (pieces > np.log(0.5 + 1.3)) | (width < np.log(0.2 + THIN))
    groups[worn & (light < np.log(0.1 + EVEN_LIGHT))] = 4
    return groups


class PreprocessStats(NamedTuple):
    """Statistics of an upload before the logarithm, by feature name. The defaults are those of a blank image."""

    contrast: float = 0.0
    light: float = 0.0
    colour: float = 0.0
    left_out: float = 0.0
    pieces: int = 0
    width: float = 0.0
    extent: int = 0
    texture: float = 1.0
    blend: float = 1.0
    uneven: float = 1.0
    bilevel: bool = False

    @classmethod
    def measure(cls, intensity: Floats, digit: Mask, near: Mask, box: Box, contrast: float) -> Self:
        """Measure texture, blend and unevenness from the foreground [H, W], the digit's pixels, and those with a margin."""
        left, top, right, bottom = box
        margin = max(2, round(0.1 * max(right - left, bottom - top)))
        window = slice(max(top - margin, 0), bottom + margin), slice(max(left - margin, 0), right + margin)
        intensity, digit, near = intensity[window], digit[window], near[window]
        ink, paper = intensity[digit], intensity[~near]
        within = float(np.square(ink - ink.mean()).sum())
        blend = within + (float(np.square(intensity[~digit]).sum()) if (~digit).any() else 0.0)
        total = float(np.square(intensity - intensity.mean()).sum())
        return cls(
            contrast=contrast,
            texture=float(np.sqrt(np.mean(np.square(paper)))) / contrast if paper.size else 0.0,
            blend=blend / max(total, 1e-9),
            uneven=float(ink.std()) / contrast,
        )


def upload_features(image: Floats, stats: PreprocessStats) -> Floats:
    """Return float32 [K] in the order of `FEATURE_NAMES`, always finite, from a preprocessed image [H, W] in [0, 1]."""
    mass = float(image.sum())
    inked = int((image > 0.2).sum())
    mid = int(((image > 0.2) & (image < 0.8)).sum())
    tall, wide = int((image > 0.1).any(axis=1).sum()), int((image > 0.1).any(axis=0).sum())
    raw = (
        0.05 + mid / max(inked, 1),
        1 + mass,
        0.05 + edge_length(image) / max(mass, 1.0),
        0.2 + stats.width,
        0.5 + stats.pieces,
        0.03 + stats.texture,
        0.02 + stats.blend,
        0.05 + stats.uneven,
        0.03 + stats.left_out,
        0.1 + stats.light,
        0.03 + stats.colour,
        0.05 + stats.contrast,
        1 + min(stats.extent, 24),
        (1 + wide) / (1 + tall),
        0.02 + mass / max(wide * tall, 1),
        1 + stats.extent,
    )
    return np.append(np.log(np.asarray(raw, np.float64)), float(stats.bilevel)).astype(np.float32)


def edge_length(strokes: Floats) -> float:
    """Return the total variation of an image [H, W] in [0, 1], which is the length of its edges in pixels."""
    padded = np.zeros((strokes.shape[0] + 2, strokes.shape[1] + 2), np.float32)
    padded[1:-1, 1:-1] = strokes
    down, across = np.diff(padded, axis=0)[:, :-1], np.diff(padded, axis=1)[:-1]
    return float(np.sqrt(down * down + across * across).sum())


def stroke_width(strokes: Floats) -> float:
    """Return the mean stroke width in pixels. A stroke has two edges, so this is twice its area over the edge length."""
    return 2 * float(strokes.sum()) / max(edge_length(strokes), 1e-6)
