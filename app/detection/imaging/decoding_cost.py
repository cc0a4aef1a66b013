"""How long the decoding of an image file will take, read from its header.

The estimate decides which queue an upload waits in, and when it is refused; a limit on the CPU time catches files whose header
tells less than their decoding takes. The constants were measured on one core with images of noise and of 25 million pixels.
"""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from app.detection.imaging.errors import UndecodableImage
from app.detection.imaging.file_headers import declared_size, sniff

HEAD_BYTES = 256 * 1024  # enough for an estimate: segments of 64 KiB each may stand before the frame header of a JPEG

_BASE_S = 0.002  # opening and preparing any image
_SECONDS_PER_BYTE = 10e-9  # Pillow reads the comments of a GIF in steps of 255 bytes
_SECONDS_PER_PIXEL = {"PNG": 25e-9, "JPEG": 3e-9, "WEBP": 25e-9, "GIF": 12e-9, "BMP": 10e-9, "TIFF": 25e-9}
_SECONDS_PER_SCAN_PIXEL = 8e-9  # of a JPEG with several scans
_SECONDS_PER_RLE_PIXEL = 150e-9  # of a BMP with run lengths, which Pillow decodes in Python
_UNKNOWN_PIXELS = 25_000_000  # where the header does not stand in the bytes

MAX_TIFF_SHARE = 4  # of the pixel limit: the tiles of each colour, and of the margin, count too
_SCAN = re.compile(rb"\xff\xda[\x00-\x0f]")
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_STRIP_ROWS, _TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 256, 257, 278, 322, 323
_TIFF_OFFSETS = (273, 324)  # of strips and of tiles
_TIFF_LENGTHS = (279, 325)


def decoding_seconds(data: bytes, max_pixels: int, length: int | None = None) -> float:
    """Return the CPU seconds that decoding takes, for a file or for the first HEAD_BYTES of a file of `length` bytes.

    A file that declares more than `max_pixels` costs next to nothing, because it is refused before it is decoded.
    Raises an ImageError where the file type is not accepted or the header is damaged.
    """
    kind, length = sniff(data), length or len(data)
    pixels = _declared_pixels(data, kind, complete=len(data) >= length)
    seconds = _SECONDS_PER_PIXEL[kind]
    if kind == "JPEG" and (scans := len(_SCAN.findall(data))) > 1:
        seconds = _SECONDS_PER_SCAN_PIXEL * scans
    elif kind == "BMP" and data[30:31] in (b"\x01", b"\x02"):
        seconds = _SECONDS_PER_RLE_PIXEL
    elif kind == "TIFF":
        pixels = tiff_pixels(data) or pixels
    if pixels > max_pixels * (MAX_TIFF_SHARE if kind == "TIFF" else 1):
        pixels = 0
    read = max(length, _tiff_bytes(data)) if kind == "TIFF" else length
    return _BASE_S + seconds * pixels + _SECONDS_PER_BYTE * read


def _declared_pixels(data: bytes, kind: str, *, complete: bool) -> int:
    """Width times height; a pessimistic number where the header does not stand in `data`."""
    if kind == "BMP":
        width, height = (int.from_bytes(data[at : at + 4], "little", signed=True) for at in (18, 22))
        return abs(width * height)
    try:
        size = declared_size(data, kind)
    except UndecodableImage:
        if complete:
            raise
        size = None
    return size[0] * size[1] if size else _UNKNOWN_PIXELS


class _TiffEntry(NamedTuple):
    """An entry of a TIFF directory (TIFF 6.0, section 2): the number of its values, and the value or its offset."""

    tag: int
    values: int
    value: int


def tiff_pixels(data: bytes) -> int:
    """Return the pixels of all strips or tiles of the first page; 0 where its directory does not stand in `data`.

    Several strips may point to the same bytes, so a small file can hold more of them than its width and height need.
    """
    entries = {entry.tag: entry for entry in _tiff_entries(data)}
    value = {tag: entry.value for tag, entry in entries.items()}
    width, height = value.get(_TIFF_WIDTH, 0), value.get(_TIFF_HEIGHT, 0)
    area = value.get(_TIFF_TILE_WIDTH, 0) * value.get(_TIFF_TILE_HEIGHT, 0)
    area = area or width * min(value.get(_TIFF_STRIP_ROWS, height), height)
    count = max((entries[tag].values for tag in _TIFF_OFFSETS if tag in entries), default=1)
    return max(width * height, area * count)


def _tiff_bytes(data: bytes) -> int:
    """Return the bytes that are read for all strips or tiles of the first page, as far as their lengths stand in `data`.

    Many strips may share the same bytes, which libtiff then reads for each.
    """
    order = "<" if data[:2] == b"II" else ">"
    for entry in _tiff_entries(data):
        if entry.tag in _TIFF_LENGTHS and entry.values > 1:
            packed = data[entry.value : entry.value + 4 * entry.values]
            return sum(struct.unpack(f"{order}{len(packed) // 4}I", packed[: len(packed) // 4 * 4]))
    return 0


def _tiff_entries(data: bytes) -> Iterator[_TiffEntry]:
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data.ljust(8, b"\x00"), 4)
    (entry_count,) = struct.unpack(order + "H", data[start : start + 2].ljust(2, b"\x00"))
    entries = data[start + 2 : start + 2 + 12 * entry_count]
    for tag, kind, count, value in struct.iter_unpack(order + "HHII", entries[: len(entries) // 12 * 12]):
        is_short = kind == 3 and count == 1
        yield _TiffEntry(tag, count, (value >> 16 if order == ">" else value & 0xFFFF) if is_short else value)
