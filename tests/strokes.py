"""Drawings made from a seed: what a 28x28 image of a digit looks like, without any data set."""

import io

import numpy as np
from PIL import Image


def stroke_images(count, *, seed, size=28):
    """Bright pen strokes of three segments on dark: uint8 [count, size, size]."""
    random = np.random.RandomState(seed)
    points = random.uniform(0.2, 0.8, (count, 4, 1, 2)) * size
    pixels = np.stack(np.meshgrid(np.arange(size), np.arange(size)), axis=-1).reshape(1, -1, 2)
    distance = np.full((count, size * size), np.inf)
    for start, end in ((0, 1), (1, 2), (2, 3)):
        a, along = points[:, start], points[:, end] - points[:, start]
        share = ((pixels - a) * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-9)
        nearest = a + np.clip(share, 0, 1)[..., None] * along
        distance = np.minimum(distance, np.linalg.norm(pixels - nearest, axis=-1))
    ink = np.clip(2.2 - distance, 0, 1) * 255
    return ink.round().astype(np.uint8).reshape(count, size, size)


def png(pixels):
    """The bytes of a PNG of uint8 pixels."""
    return encoded(Image.fromarray(pixels), "PNG")


def npy(array, *, allow_pickle=False):
    """The bytes of a .npy file."""
    out = io.BytesIO()
    np.save(out, array, allow_pickle=allow_pickle)
    return out.getvalue()


def encoded(image, kind, **options):
    """The bytes of a Pillow image in a file format."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
