"""How long the decoding of an image file will take, read from its header.

The estimate decides which queue an upload waits in, and when it is refused; a limit on the CPU time catches files whose header
tells less than their decoding takes. The constants were measured on one core with images of noise and of 25 million pixels.
"""

import math
import struct
from collections.abc import Iterator
from typing import Literal, NamedTuple

from app.detection.imaging.errors import DecodingTooLong, UndecodableImage
from app.detection.imaging.file_headers import count_jpeg_scans, declared_size, sniff

HEAD_BYTES = 256 * 1024  # enough for an estimate: segments of 64 KiB each may stand before the frame header of a JPEG

_BASE_S = 0.002  # opening and preparing any image
_SECONDS_PER_BYTE = 10e-9  # Pillow reads the comments of a GIF in steps of 255 bytes
_SECONDS_PER_PIXEL = {"PNG": 25e-9, "JPEG": 3e-9, "WEBP": 25e-9, "GIF": 12e-9, "BMP": 10e-9, "TIFF": 25e-9}
_SECONDS_PER_SCAN_PIXEL = 1.2e-9  # of a progressive JPEG, for each scan
_MAX_ENCODER_SCANS = 20  # encoders write at most this many; libjpeg writes 10
_SECONDS_PER_EXTRA_SCAN_PIXEL = 8e-9  # for each scan above that: the estimate of such a file exceeds the limit
_SECONDS_PER_RLE_PIXEL = 150e-9  # of a BMP with run lengths, which Pillow decodes in Python
_BMP_HEAD_BYTES = 2048  # with a palette
_RLE_BYTES_PER_PIXEL = 4  # at most: two for the pixel, two for the end of its line
_SECONDS_PER_STRIP = 10e-6  # or tile, of a TIFF without compression, which Pillow reads one by one
_MAX_SECONDS = 8.0  # no accepted image takes more than 2 s, and no estimate of one is wrong by more than a factor of 4

MAX_TIFF_SHARE = 4  # of the pixel limit: the tiles of each colour, and of the margin, count too
_BMP_CORE_HEADER = b"\x0c"  # length of the oldest header, whose fields are smaller
_MAX_TIFF_FIELDS = 256
_SHORT, _LONG, _IFD, _LAST_KIND = 3, 4, 13, 13  # types of fields: 16 and 32 bits; those of BigTIFF have higher numbers
_BYTE_KINDS = (1, 2, 6, 7)  # texts and bytes, which are read as they are
_FRACTION_KINDS = (5, 10)  # 5 us a value
_MAX_VALUES = 65_536  # of a field ...
_MAX_SLOW_VALUES = 256  # ... if they are fractions, or in EXIF data, where all are read
_INLINE_SHORTS = 2  # 16-bit values that a field itself holds; more are at an offset
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_STRIP_ROWS, _TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 256, 257, 278, 322, 323
_TIFF_SIZES = (_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_STRIP_ROWS, _TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT)
_TIFF_BITS, _TIFF_COMPRESSION, _TIFF_SAMPLES = 258, 259, 277
_TIFF_OFFSETS = (273, 324)  # of strips and of tiles
_TIFF_LENGTHS = (279, 325)
_TIFF_COLOURS = 320
_TIFF_LARGE = (*_TIFF_OFFSETS, *_TIFF_LENGTHS, _TIFF_COLOURS)
_TIFF_DIRECTORIES = (34665, 34853)  # EXIF and GPS data
_TIFF_INTEROPERABILITY = 40965  # stands in the EXIF data


def decoding_seconds(data: bytes, max_pixels: int, length: int | None = None) -> float:
    """Return the CPU seconds that decoding takes, for a file or for the first HEAD_BYTES of a file of `length` bytes.

    A file that declares more than `max_pixels` costs next to nothing, because it is refused before it is decoded.
    Raises DecodingTooLong for a file that no accepted image is like, and another ImageError where the file type is not accepted
    or the header is damaged.
    """
    kind, length = sniff(data), length or len(data)
    fields = _tiff_fields(data) if kind == "TIFF" else {}
    pixels = _declared_pixels(data, kind, max_pixels if len(data) < length else None)
    seconds, read_s = _SECONDS_PER_PIXEL[kind], _SECONDS_PER_BYTE * max(length, _tiff_bytes(data, fields))
    if kind == "JPEG" and (scans := _count_scans(data)) > 1:
        seconds += _SECONDS_PER_SCAN_PIXEL * scans + _SECONDS_PER_EXTRA_SCAN_PIXEL * max(0, scans - _MAX_ENCODER_SCANS)
    elif kind == "BMP" and data[14:15] != _BMP_CORE_HEADER and data[30:31] in (b"\x01", b"\x02"):
        seconds = _SECONDS_PER_RLE_PIXEL
        if length > _BMP_HEAD_BYTES + _RLE_BYTES_PER_PIXEL * pixels:
            raise UndecodableImage("damaged BMP: more run lengths than pixels")
    elif kind == "TIFF":
        pixels = _tiff_pixels(fields).in_all or pixels
        if _TIFF_COMPRESSION not in fields or fields[_TIFF_COMPRESSION].value == 1:
            read_s += _SECONDS_PER_STRIP * _tiff_strips(fields)
    if pixels > max_pixels * (MAX_TIFF_SHARE if kind == "TIFF" else 1):
        pixels = 0
    total_s = _BASE_S + seconds * pixels + read_s
    if total_s > _MAX_SECONDS:
        raise DecodingTooLong("decoding this image would take too long")
    return total_s


def _count_scans(data: bytes) -> int:
    try:
        return count_jpeg_scans(data)
    except UndecodableImage:  # the first scan does not stand in `data`
        return 1


def _declared_pixels(data: bytes, kind: str, unknown: int | None) -> int:
    """Width times height; `unknown` where the header does not stand in `data`, which is complete if that is None."""
    if kind == "BMP":
        width, height = struct.unpack_from("<HH" if data[14:15] == _BMP_CORE_HEADER else "<ii", data.ljust(26, b"\x00"), 18)
        return abs(int(width) * int(height))
    try:
        size = declared_size(data, kind)
    except UndecodableImage:
        if unknown is None:
            raise
        return unknown
    return math.prod(size) if size else 0  # the pixels of a TIFF are counted by its strips


class TiffPixels(NamedTuple):
    """The pixels of the first page of a TIFF, 0 where its directory cannot be read."""

    in_all: int  # of all strips or tiles, which may overlap
    in_one: int  # of each strip or tile
    bytes_each: int = 1  # of a pixel


class _TiffField(NamedTuple):
    """A field of a TIFF directory (TIFF 6.0, section 2): type and number of its values, and the first value or its offset."""

    kind: int
    values: int
    value: int


def tiff_pixels(data: bytes) -> TiffPixels:
    """Return how many pixels the first page holds. Raises UndecodableImage.

    Several strips may point to the same bytes, so a small file can hold more of them than its width and height need.
    """
    fields = _tiff_fields(data)
    # the number of bits of the first sample; the others are alike
    bits = fields.get(_TIFF_BITS, _TiffField(_SHORT, 1, 1))
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    depth = bits.value if bits.values <= _INLINE_SHORTS else int.from_bytes(data[bits.value : bits.value + 2], order)
    samples = fields.get(_TIFF_SAMPLES, _TiffField(_SHORT, 1, 1)).value
    return _tiff_pixels(fields)._replace(bytes_each=max(1, depth * samples // 8))


def _tiff_pixels(fields: dict[int, _TiffField]) -> TiffPixels:
    value = {tag: field.value for tag, field in fields.items()}
    width, height = value.get(_TIFF_WIDTH, 0), value.get(_TIFF_HEIGHT, 0)
    area = value.get(_TIFF_TILE_WIDTH, 0) * value.get(_TIFF_TILE_HEIGHT, 0)
    area = area or width * min(value.get(_TIFF_STRIP_ROWS, height), height)
    return TiffPixels(max(width * height, area * _tiff_strips(fields)), area)


def _tiff_strips(fields: dict[int, _TiffField]) -> int:
    return max((fields[tag].values for tag in _TIFF_OFFSETS if tag in fields), default=1)


def _tiff_bytes(data: bytes, fields: dict[int, _TiffField]) -> int:
    """Return the bytes that are read for all strips or tiles of the first page, as far as their lengths stand in `data`.

    Many strips may share the same bytes, which libtiff then reads for each.
    """
    order = "<" if data[:2] == b"II" else ">"
    for tag in _TIFF_LENGTHS:
        if tag in fields and fields[tag].values > (_INLINE_SHORTS if fields[tag].kind == _SHORT else 1):
            kind, values, start = fields[tag]
            letter, size = ("H", 2) if kind == _SHORT else ("I", 4)
            packed = data[start : start + size * values]
            return sum(struct.unpack(f"{order}{len(packed) // size}{letter}", packed[: len(packed) // size * size]))
    return 0


def _tiff_fields(data: bytes) -> dict[int, _TiffField]:
    """Return the fields of the first page by tag, as far as they stand in `data`.

    Raises UndecodableImage for fields that no program writes, here or in the EXIF data, which Pillow reads with the image.
    """
    order = "<" if data[:2] == b"II" else ">"
    fields: dict[int, _TiffField] = {}
    for tag, field in _tiff_directory(data, order, struct.unpack_from(order + "I", data.ljust(8, b"\x00"), 4)[0]):
        if tag in fields:  # libraries read different ones
            raise UndecodableImage("damaged TIFF: a field occurs twice")
        kinds = (_SHORT, _LONG) if tag in _TIFF_SIZES else (_LONG, _IFD) if tag in _TIFF_DIRECTORIES else range(_LAST_KIND + 1)
        is_single = tag in (*_TIFF_SIZES, *_TIFF_DIRECTORIES)
        if field.kind not in kinds or (is_single and field.values != 1) or tag == _TIFF_INTEROPERABILITY:
            raise UndecodableImage("damaged TIFF: a field has another type or place than the format allows")
        _check_values(field, math.inf if tag in _TIFF_LARGE else _MAX_VALUES)
        fields[tag] = field
    for tag in _TIFF_DIRECTORIES:
        if tag in fields:
            for _, field in _tiff_directory(data, order, fields[tag].value):
                _check_values(field, _MAX_SLOW_VALUES)
    return fields


def _tiff_directory(data: bytes, order: str, start: int) -> Iterator[tuple[int, _TiffField]]:
    """Yield the tags and fields of the directory at `start`. Raises UndecodableImage if there are too many."""
    (count,) = struct.unpack(order + "H", data[start : start + 2].ljust(2, b"\x00"))
    if count > _MAX_TIFF_FIELDS:
        raise UndecodableImage("damaged TIFF: more fields than any program writes")
    entries = data[start + 2 : start + 2 + 12 * count]
    for tag, kind, values, value in struct.iter_unpack(order + "HHII", entries[: len(entries) // 12 * 12]):
        is_inline = kind == _SHORT and values <= _INLINE_SHORTS
        yield tag, _TiffField(kind, values, (value >> 16 if order == ">" else value & 0xFFFF) if is_inline else value)


def _check_values(field: _TiffField, most: float) -> None:
    """Raise UndecodableImage if a field has more than `most` numbers, or more fractions than any program writes."""
    if field.kind in _BYTE_KINDS:
        return
    if field.values > (min(most, _MAX_SLOW_VALUES) if field.kind in _FRACTION_KINDS else most):
        raise UndecodableImage("damaged TIFF: a field has more values than any program writes")
