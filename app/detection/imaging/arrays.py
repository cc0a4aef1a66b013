"""Reads arrays of images: .npy bytes in, uint8 [N, S, S] out. Errors say what came and how to convert it."""

import math
import re
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from app.detection.imaging.errors import TooManyImages, UndecodableImage

_KINDS = {"f": "float", "i": "int", "u": "uint", "b": "bool", "c": "complex"}
_DESCR = re.compile(rb"['\"]descr['\"]\s*:\s*['\"][<>|=]?([a-zA-Z])(\d{0,3})")
_SHAPE = re.compile(rb"['\"]shape['\"]\s*:\s*\(([\d\s,]{0,64})\)")


def read_array(data: bytes, *, max_images: int, size: int) -> NDArray[np.uint8]:
    """Return the images of a .npy file, uint8 [N, size, size]: a read-only view of `data`, or a copy if its memory order is F.

    Accepts uint8 arrays [N, S, S], [S, S], [N, S * S], [N, 1, S, S] and [N, S, S, 1]. Unpickles nothing, and checks the length
    of the data before it allocates memory.

    Raises:
        UndecodableImage: the array has another type or shape, which the message names, or is damaged.
        TooManyImages: it has more than `max_images` images.
    """
    try:
        shape, order, offset = read_npy_header(data)
    except UndecodableImage as error:
        raise UndecodableImage(_explain(bytes(data[:2048]), size) or str(error)) from None
    is_one = shape == (size, size)
    if not is_one and shape[1:] not in ((size, size), (size * size,), (1, size, size), (size, size, 1)):
        raise UndecodableImage(_explain(bytes(data[:2048]), size) or f"the array's shape is not [N, {size}, {size}]")
    count = 1 if is_one else shape[0]
    if count == 0:
        raise UndecodableImage(_explain(bytes(data[:2048]), size) or "the array holds no images")
    if count > max_images:
        raise TooManyImages(f"{count:,} images in one array; at most {max_images:,} are accepted")
    if len(data) - offset != math.prod(shape):
        raise UndecodableImage(f"the array's header declares {count:,} images, its data are of another length")
    pixels = np.frombuffer(data, np.uint8, offset=offset).reshape(shape, order=order)
    return np.ascontiguousarray(pixels).reshape(count, size, size)


def read_npy_header(data: bytes) -> tuple[tuple[int, ...], Literal["C", "F"], int]:
    """Return shape, memory order and data offset in bytes of a uint8 array in .npy format, versions 1 to 3 (NEP 1).

    Raises UndecodableImage. Regular expressions match the fields in 5 us; numpy's reader takes 21 us and emits Python
    warnings about the client's text.
    """
    if data[:6] != b"\x93NUMPY":
        raise UndecodableImage("not a .npy array: no known signature")
    if data[6:8] not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        raise UndecodableImage("a .npy array of an unknown version; versions 1 to 3 are read")
    start = 10 if data[6] == 1 else 12
    end = start + int.from_bytes(data[8:start], "little")
    if len(data) < max(start, end):
        raise UndecodableImage("truncated .npy header")
    header = data[start : min(end, start + 1024)]
    if re.search(rb"['\"]descr['\"]\s*:\s*['\"][|<>=]?u1['\"]", header) is None:
        raise UndecodableImage("the array's type is not uint8; send 0 for background to 255 for ink")
    shape = _npy_field(header, b"shape", rb"\([\d\s,]{0,64}\)")
    order: Literal["C", "F"] = "F" if _npy_field(header, b"fortran_order", rb"True|False") == b"True" else "C"
    return tuple(int(number) for number in re.findall(rb"\d+", shape)), order, end


def _npy_field(header: bytes, name: bytes, pattern: bytes) -> bytes:
    found = re.search(rb"['\"]" + name + rb"['\"]\s*:\s*(" + pattern + rb")\s*[,}]", header)
    if found is None:
        raise UndecodableImage(f"the .npy header has no readable '{name.decode()}'")
    return bytes(found[1])


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
