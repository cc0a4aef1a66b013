"""How much of a digit its preparation destroyed: the prepared image compared with the strokes that the file was drawn from."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.detection.imaging.morphology import dilate

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

MUTILATED = 0.12  # of the strokes are missing, or of the prepared ink is not strokes
_TOLERANCE = 2  # pixels by which strokes that are compared may differ


def damage(prepared: Pixels, ink: NDArray[np.floating]) -> float:
    """The share of strokes that are missing from a prepared image, or of its ink that is not strokes; the larger of the two.

    `prepared` is uint8 [S, S]; `ink` [H, W] in [0, 1] are the strokes of the page, without anything else. 0 without strokes.
    """
    if not (ink > 0.4).any():
        return 0.0
    truth, found = _canonical(ink, len(prepared)) > 0.4, prepared > 100
    if not found.any():
        return 1.0
    strokes, wide = truth.sum(), dilate(truth, _TOLERANCE)
    found = np.pad(found, 1)
    inked, grown = found.sum(), dilate(found, _TOLERANCE)
    damages = []
    for down in range(3):  # a prepared image may lie a pixel off
        for right in range(3):
            part = np.s_[down : down + len(truth), right : right + len(truth)]
            damages.append(max((truth & ~grown[part]).sum() / strokes, 1 - (found[part] & wide).sum() / inked))
    return float(min(damages))


def _canonical(ink: NDArray[np.floating], size: int) -> Floats:
    """The strokes [H, W] of the undamaged page as MNIST was made: [size, size]."""
    rows, columns = np.flatnonzero((ink > 0.4).any(axis=1)), np.flatnonzero((ink > 0.4).any(axis=0))
    cut = Image.fromarray(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32))
    scale = round(size * 20 / 28) / max(cut.size)
    shape = max(1, round(cut.width * scale)), max(1, round(cut.height * scale))
    small = np.asarray(cut.resize(shape, Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR))
    centre = [float(small.sum(axis=1 - axis) @ np.arange(small.shape[axis])) / float(small.sum()) for axis in (0, 1)]
    top, left = (int(np.clip(round(size / 2 - at), 0, size - side)) for at, side in zip(centre, small.shape, strict=True))
    canvas = np.zeros((size, size), np.float32)
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas
