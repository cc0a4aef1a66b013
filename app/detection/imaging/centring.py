"""Centres 28x28 images as those of MNIST are: by their centre of mass, and by whole pixels."""

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

MAX_OFF_CENTRE = 1.0  # pixels; the centre of mass of all 70,000 images of MNIST lies within 0.5 of the middle
_CHUNK_IMAGES = 2048  # centred at a time: 6 MB as float32


def centre_images(images: Pixels) -> tuple[Pixels, Mask]:
    """Shift images [N, S, S] whose centre of mass lies more than MAX_OFF_CENTRE pixels off the middle on an axis.

    Shifts by whole pixels, and never moves ink out of the image. Returns all images and which of them were shifted [N].
    """
    chunks = [_off_centre(images[start : start + _CHUNK_IMAGES]) for start in range(0, len(images), _CHUNK_IMAGES)]
    offset = np.concatenate(chunks) if chunks else np.zeros((0, 2), np.float32)
    moved = np.zeros(len(images), np.bool_)
    suspects = np.flatnonzero(np.abs(offset).max(axis=1) > MAX_OFF_CENTRE)
    if len(suspects):
        images = images.copy()
    for index in suspects:
        shift = [_possible_shift(images[index].any(axis=1 - axis), -round(float(offset[index, axis]))) for axis in (0, 1)]
        images[index] = np.roll(images[index], shift, (0, 1))
        moved[index] = any(shift)
    return images, moved


def _off_centre(images: Pixels) -> Floats:
    """Return the centres of mass of images [N, S, S] in pixels from the middle, down and across [N, 2]; 0 without ink."""
    side = images.shape[-1]
    position = np.arange(side, dtype=np.float32) - side / 2
    weights = np.stack([np.ones(side * side), np.repeat(position, side), np.tile(position, side)], axis=1).astype(np.float32)
    moments = images.reshape(len(images), -1).astype(np.float32) @ weights
    offset: Floats = (moments[:, 1:] / np.maximum(moments[:, :1], 1)).astype(np.float32)
    return offset


def _possible_shift(inked: Mask, wanted: int) -> int:
    """Limit a shift along an axis so that no inked row or column [S] leaves the image."""
    ends = np.flatnonzero(inked)
    return int(np.clip(wanted, -ends[0], len(inked) - 1 - ends[-1]))
