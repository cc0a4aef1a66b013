"""Reads arrays of images: .npy bytes in, uint8 [N, S, S] out. Errors say what came and how to convert it."""

import math
import re

import numpy as np
from numpy.typing import NDArray

from app.detection.imaging.decode import decode_array
from app.detection.imaging.errors import TooManyImages, UndecodableImage
from app.detection.imaging.file_headers import read_npy_header

_KINDS = {"f": "float", "i": "int", "u": "uint", "b": "bool", "c": "complex"}
_DESCR = re.compile(rb"['\"]descr['\"]\s*:\s*['\"][<>|=]?([a-zA-Z])(\d{0,3})")
_SHAPE = re.compile(rb"['\"]shape['\"]\s*:\s*\(([\d\s,]{0,64})\)")


def read_array(data: bytes, *, max_images: int, size: int) -> NDArray[np.uint8]:
    """As `decode_array`, which it calls first, and in addition for uint8 [N, S * S], [N, 1, S, S] and [N, S, S, 1].

    Raises:
        UndecodableImage: the array has another type or shape; the message names both.
        TooManyImages: it has more than `max_images` images.
    """
    try:
        return decode_array(data, max_images=max_images, size=size)
    except UndecodableImage as error:
        if (images := _flat_images(data, max_images, size)) is not None:
            return images
        raise UndecodableImage(_explain(bytes(data[:2048]), size) or str(error)) from None


def _flat_images(data: bytes, max_images: int, size: int) -> NDArray[np.uint8] | None:
    """The images of a uint8 array with one of the other shapes; None if it is none of those, or damaged."""
    try:
        shape, order, offset = read_npy_header(data)
    except UndecodableImage:
        return None
    if shape[1:] not in ((size * size,), (1, size, size), (size, size, 1)) or not shape[0]:
        return None
    if shape[0] > max_images:
        raise TooManyImages(f"{shape[0]:,} images in one array; at most {max_images:,} are accepted")
    if len(data) - offset != math.prod(shape):
        return None
    return np.frombuffer(data, np.uint8, offset=offset).reshape(shape, order=order).reshape(-1, size, size)


def _explain(header: bytes, size: int) -> str | None:
    """A sentence with the type and shape of the array and how to convert it; None if these are not the error."""
    descr, shape = _DESCR.search(header), _SHAPE.search(header)
    if not header.startswith(b"\x93NUMPY") or descr is None or shape is None:
        return None
    kind, width = descr[1].decode(), int(descr[2] or b"0")
    name = "bool" if kind == "b" else f"{_KINDS[kind]}{8 * width}" if kind in _KINDS else "of another type than numbers"
    lengths = [int(number) for number in re.findall(rb"\d+", shape[1])]
    if name == "uint8" and len(lengths) in (2, 3) and lengths[-2:] == [size, size]:
        return None  # the type and the shape are right
    came = f"the array is {name} {lengths}; send uint8 [N, {size}, {size}] or [{size}, {size}], 0 = background, 255 = ink"
    if kind == "f":
        return f"{came}: for values from 0 to 1, np.rint(array * 255).astype(np.uint8)"
    if kind == "b":
        return f"{came}: array.astype(np.uint8) * 255"
    if name not in ("uint8", "of another type than numbers"):
        return f"{came}: for values from 0 to 255, array.astype(np.uint8)"
    return f"{came}, one channel" if lengths[1:3] == [size, size] or lengths[2:] == [size, size] else came
