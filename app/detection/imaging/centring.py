"""Centres 28x28 images as those of MNIST are: by their centre of mass, and by whole pixels."""

from functools import lru_cache

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
    if len(images) == 1:
        image, shifted = centre_image(images[0])
        return image[None], np.array([shifted])
    distances = np.zeros(len(images), np.intp)
    for start in range(0, len(images), _CHUNK_IMAGES):
        chunk = slice(start, start + _CHUNK_IMAGES)
        distances[chunk] = _distances(images[chunk])
    moved = distances != 0
    if not moved.any():
        return images, moved
    result = images.copy()
    taken, given = images.reshape(len(images), -1), result.reshape(len(images), -1)
    for index, distance in enumerate(distances.tolist()):
        if distance:
            _shift_pixels(taken[index], given[index], distance)
    return result, moved


def centre_image(image: Pixels) -> tuple[Pixels, bool]:
    """`centre_images` for one image [S, S]: without arrays of images, in a sixth of the time."""
    side = image.shape[0]
    moments: list[float] = (image.reshape(-1).astype(np.float32) @ _moment_weights(side)).tolist()
    ink, down, across = moments
    ink = max(ink, 1.0)
    if max(abs(down), abs(across)) <= MAX_OFF_CENTRE * ink:
        return image, False
    down, across = _limit_shift(image, -round(down / ink)), _limit_shift(image.T, -round(across / ink))
    distance = down * side + across
    if not distance:
        return image, False
    shifted = np.empty(image.shape, np.uint8)
    _shift_pixels(image.reshape(-1), shifted.reshape(-1), distance)
    return shifted, True


def _limit_shift(image: Pixels, shift: int) -> int:
    """Limit a shift of the rows of an image [S, S] so that no ink leaves it; of its columns, for the transposed image."""
    side: int = image.shape[1]
    pixels = image.tobytes()  # bytes find the first ink ten times as fast as numpy
    before, after = len(pixels) - len(pixels.lstrip(b"\0")), len(pixels) - len(pixels.rstrip(b"\0"))
    return min(max(shift, -(before // side)), after // side)


@lru_cache(maxsize=4)
def _moment_weights(side: int) -> Floats:
    """Return the weights of each pixel in the sums of ink, of ink times row, and of ink times column [S * S, 3]."""
    position = np.arange(side, dtype=np.float32) - side / 2
    columns = [np.ones(side * side), np.repeat(position, side), np.tile(position, side)]
    return np.stack(columns, axis=1).astype(np.float32)


def _distances(images: Pixels) -> NDArray[np.intp]:
    """How far to shift each image [N, S, S], in pixels in memory order [N]; 0 for those that stay."""
    side = images.shape[-1]
    pixels = images.astype(np.float32)
    moments = pixels.reshape(len(images), -1) @ _moment_weights(side)
    centres = moments[:, 1:] / np.maximum(moments[:, :1], 1)  # of mass, down and across from the middle [N, 2]
    distances = np.zeros(len(images), np.intp)
    off = np.flatnonzero(np.abs(centres).max(axis=1) > MAX_OFF_CENTRE)
    if len(off):
        pixels, wanted, ones = pixels[off], -np.rint(centres[off]), np.ones(side, np.float32)
        down = _possible_shift(pixels @ ones > 0, wanted[:, 0])  # a product is faster than the largest pixel of each row
        across = _possible_shift(ones @ pixels > 0, wanted[:, 1])
        distances[off] = down * side + across
    return distances


def _shift_pixels(taken: Pixels, given: Pixels, distance: int) -> None:
    """Copy the pixels of an image [S * S] to another one, `distance` pixels further; `distance` is not 0.

    Those that enter a row from another one are empty, because no ink may leave the image.
    """
    if distance > 0:
        given[:distance], given[distance:] = 0, taken[:-distance]
    else:
        given[distance:], given[:distance] = 0, taken[-distance:]


def _possible_shift(inked: Mask, wanted: Floats) -> NDArray[np.intp]:
    """Limit shifts [N] along an axis so that no inked row or column [N, S] leaves the image."""
    first, after_last = inked.argmax(axis=1), inked[:, ::-1].argmax(axis=1)
    possible: NDArray[np.intp] = np.minimum(np.maximum(wanted.astype(np.intp), -first), after_last)
    return possible
