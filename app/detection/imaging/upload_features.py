"""What preparing an upload saw, as a small vector: the part of an image's strangeness that the prepared image has lost.

A photograph that is cropped, flattened and centred looks like a digit; the grey between ink and paper, the clutter left
out and the colours do not. Each statistic is a logarithm, so that it is roughly Gaussian over honest uploads, with a floor
below which cameras differ and nothing is told. Knows no model and no threshold.
"""

from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

FEATURE_NAMES = (
    "mid_tones",  # share of the prepared ink that is neither dark nor light
    "mass",  # ink of the prepared image
    "edges",  # length of its edges over its ink
    "width",  # of the stroke before any redrawing, in pixels of the 20-pixel box
    "pieces",  # how many it was put together from
    "texture",  # spread of the paper around it, over the ink's contrast
    "blend",  # share of the variance in and around it that two levels, ink and paper, leave over
    "uneven",  # spread of the ink's own level
    "left_out",  # ink that was found but not taken, over the ink taken
    "light",  # range of the paper's level over the ink's contrast
    "colour",  # colour that the mixture of ink and paper does not explain
    "contrast",  # between ink and paper
    "extent",  # longest side in pixels as uploaded, where that is short
    "aspect",  # width over height
    "fill",  # ink over the area of its box
)


class PreprocessStats(NamedTuple):
    """Raw statistics; the defaults are what a blank picture shows."""

    contrast: float = 0.0
    noise: float = 0.0
    light: float = 0.0
    colour: float = 0.0
    left_out: float = 0.0
    page: float = 0.0
    pieces: int = 0
    width: float = 0.0
    extent: int = 0
    texture: float = 1.0
    blend: float = 1.0
    uneven: float = 1.0

    @classmethod
    def of(cls, amount: Floats, rest: Floats, solid: Mask, near: Mask, box: tuple[int, int, int, int], full: float) -> Self:
        """From ink amounts [H, W] with and without the page's lines, the glyph's pixels, those and their soft edge."""
        left, top, right, bottom = box
        margin = max(2, round(0.1 * max(right - left, bottom - top)))
        window = slice(max(top - margin, 0), bottom + margin), slice(max(left - margin, 0), right + margin)
        rest, solid, near = rest[window], solid[window], near[window]
        ink, paper = rest[solid], rest[~near]
        within = float(np.square(ink - ink.mean()).sum())
        blend = within + (float(np.square(rest[~solid]).sum()) if (~solid).any() else 0.0)
        total = float(np.square(rest - rest.mean()).sum())
        return cls(
            texture=float(np.sqrt(np.mean(np.square(paper)))) / full if paper.size else 0.0,
            blend=blend / max(total, 1e-9),
            uneven=float(ink.std()) / full,
        )


def upload_features(prepared: Floats, sight: PreprocessStats) -> Floats:
    """Prepared image [H, W] in [0, 1] and what was seen -> float32 [K], in the order of `FEATURE_NAMES`; always finite."""
    mass = float(prepared.sum())
    inked = int((prepared > 0.2).sum())
    mid = int(((prepared > 0.2) & (prepared < 0.8)).sum())
    tall, wide = int((prepared > 0.1).any(axis=1).sum()), int((prepared > 0.1).any(axis=0).sum())
    raw = (
        0.05 + mid / max(inked, 1),
        1 + mass,
        0.05 + edge_length(prepared) / max(mass, 1.0),
        0.2 + sight.width,
        0.5 + sight.pieces,
        0.03 + sight.texture,
        0.02 + sight.blend,
        0.05 + sight.uneven,
        0.03 + sight.left_out,
        0.1 + sight.light,
        0.03 + sight.colour,
        0.05 + sight.contrast,
        1 + min(sight.extent, 24),
        (1 + wide) / (1 + tall),
        0.02 + mass / max(wide * tall, 1),
    )
    return np.log(np.asarray(raw, np.float64)).astype(np.float32)


def edge_length(strokes: Floats) -> float:
    """Total variation of an image [H, W] in [0, 1]: the length of its edges in pixels."""
    padded = np.zeros((strokes.shape[0] + 2, strokes.shape[1] + 2), np.float32)
    padded[1:-1, 1:-1] = strokes
    down, across = np.diff(padded, axis=0)[:, :-1], np.diff(padded, axis=1)[:-1]
    return float(np.sqrt(down * down + across * across).sum())


def stroke_width(strokes: Floats) -> float:
    """Mean width in pixels: a stroke has two edges, so twice its ink over the length of its edges."""
    return 2 * float(strokes.sum()) / max(edge_length(strokes), 1e-6)
