"""The first page of a TIFF, read before any decoder runs: how much it holds, and whether a program can have written it.

Several strips or tiles may point to the same bytes, and fields to the same values, so a small file can hold more than its size
tells. Uses the standard library only. Field numbers and types are those of TIFF 6.0 (sections 2, 8 and 15).
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from app.detection.imaging.errors import ImageTooLarge, UndecodableImage, UnsupportedImage

MAX_PIXEL_SHARE = 4  # of the pixel limit: the tiles of each colour, and of the margin, count too

_MAX_FIELDS = 256
_MAX_FRACTIONS = 256  # values of a field that Pillow reads as fractions, at 5 us each
_FRACTION_KINDS = (5, 10)
_MAX_LISTED = 4  # of the length of the file: the bytes of all fields, which overlap in edited files
_KIND_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}  # of a value of each type
_INLINE_BYTES = 4  # of values that a field itself holds; more are at an offset
_FIRST_PRIVATE = 32768
_PRIVATE_BUT_READ = (34377, 34675)  # image resources and colour profile


class _Kind(IntEnum):
    """Types of values."""

    UNKNOWN = 0
    SHORT = 3  # 16 bits
    LONG = 4  # 32 bits


class _Tag(IntEnum):
    """Numbers of fields."""

    WIDTH = 256
    HEIGHT = 257
    BITS = 258  # of each sample of a pixel
    COMPRESSION = 259
    STRIP_OFFSETS = 273
    SAMPLES = 277  # of a pixel
    STRIP_ROWS = 278
    STRIP_LENGTHS = 279
    PLANAR = 284
    TILE_WIDTH = 322
    TILE_HEIGHT = 323
    TILE_OFFSETS = 324
    TILE_LENGTHS = 325
    EXIF = 34665
    GPS = 34853
    INTEROPERABILITY = 40965


_NUMBERS = (  # fields of one number
    *(_Tag.WIDTH, _Tag.HEIGHT, _Tag.COMPRESSION, _Tag.SAMPLES),
    *(_Tag.STRIP_ROWS, _Tag.PLANAR, _Tag.TILE_WIDTH, _Tag.TILE_HEIGHT),
)
_OFFSETS = (_Tag.STRIP_OFFSETS, _Tag.TILE_OFFSETS)
_LENGTHS = (_Tag.STRIP_LENGTHS, _Tag.TILE_LENGTHS)
_DIRECTORIES = (_Tag.EXIF, _Tag.GPS, _Tag.INTEROPERABILITY)  # which Pillow would read with the image


class TiffPage(NamedTuple):
    """The size of the first page."""

    pixels: int  # of all strips or tiles, which may overlap
    strip_pixels: int  # of each strip or tile
    pixel_bytes: int
    strips: int  # or tiles
    packed_bytes: int  # that are read for all strips or tiles
    depth: int  # bits of the first sample of a pixel
    is_compressed: bool
    is_planar: bool  # each colour stands in strips of its own
    is_big_endian: bool


class _Field(NamedTuple):
    """A field of a directory: type and number of its values, and the first value or its offset."""

    kind: int
    values: int
    value: int


def read_tiff_page(data: bytes, length: int) -> TiffPage | None:
    """Return the size of the first page of a TIFF, or None if its directory does not stand in `data`.

    `data` is the whole file or the beginning of a file of `length` bytes. Raises UndecodableImage for fields that no program
    writes: decoders would read other values than this function, or read them for seconds.
    """
    fields: dict[int, _Field] = {}
    listed = 0  # bytes of the values of all fields
    for _, tag, field in _entries(data):
        if tag in fields:  # libraries read different ones
            raise UndecodableImage("damaged TIFF: a field occurs twice")
        if not _has_right_kind(tag, field):
            raise UndecodableImage("damaged TIFF: a field has another type than the format allows")
        is_read = tag < _FIRST_PRIVATE or tag in _PRIVATE_BUT_READ
        listed += min(field.values * _KIND_BYTES.get(field.kind, 0), length)
        if listed > _MAX_LISTED * length or (is_read and field.kind in _FRACTION_KINDS and field.values > _MAX_FRACTIONS):
            raise UndecodableImage("damaged TIFF: a field has more values than any program writes")
        fields[tag] = field
    return _page(data, fields) if fields else None


def _has_right_kind(tag: int, field: _Field) -> bool:
    """Whether a field that is read here has the type that the format gives it."""
    if tag == _Tag.BITS:
        return field.kind == _Kind.SHORT
    if tag in _NUMBERS:
        return field.kind in (_Kind.SHORT, _Kind.LONG) and field.values == 1
    return field.kind in (_Kind.SHORT, _Kind.LONG) or tag not in (*_OFFSETS, *_LENGTHS)


def check_page(data: bytes, max_pixels: int) -> TiffPage:
    """Return the size of the first page, after a check of its strips or tiles.

    A strip is held in memory as a whole, and a file may declare any number of them. Raises UndecodableImage or ImageTooLarge.
    """
    page, most = read_tiff_page(data, len(data)), MAX_PIXEL_SHARE * max_pixels
    if page is None:
        raise UndecodableImage("truncated TIFF")
    if page.pixels > most:
        raise ImageTooLarge(f"a TIFF whose strips or tiles hold more than {most:,} pixels, the most that are accepted in all")
    if page.strip_pixels > max_pixels or page.strip_pixels * page.pixel_bytes > most:
        raise ImageTooLarge(f"a TIFF with a strip or tile of more than {max_pixels:,} pixels, or {most:,} bytes")
    return page


def check_layout(page: TiffPage, mode: str) -> None:
    """Raise UnsupportedImage for layouts that Pillow decodes to other pixels: swapped bytes, or a part of each colour.

    `mode` is the mode in which Pillow opened the file.
    """
    is_swapped = page.is_big_endian and page.is_compressed and mode in ("F", "I")
    if is_swapped or (page.is_planar and page.depth > 8 and not page.is_compressed):
        raise UnsupportedImage("TIFF with this layout of wide values is not accepted; save it with 8 bits a sample")


def without_directories(data: bytes) -> bytes:
    """Return the TIFF without the fields that point to further directories; the EXIF orientation is no such field.

    Pillow would read the directories, whatever they point to: in files that were edited, often to something else.
    """
    positions = [position for position, tag, _ in _entries(data) if tag in _DIRECTORIES]
    if not positions:
        return data
    changed = bytearray(data)
    for position in positions:
        struct.pack_into("H", changed, position + 2, _Kind.UNKNOWN)  # the type; fields of an unknown type are ignored
    return bytes(changed)


def _page(data: bytes, fields: dict[int, _Field]) -> TiffPage:
    value = {tag: field.value for tag, field in fields.items()}
    width, height = value.get(_Tag.WIDTH, 0), value.get(_Tag.HEIGHT, 0)
    strip = value.get(_Tag.TILE_WIDTH, 0) * value.get(_Tag.TILE_HEIGHT, 0) or width * min(
        value.get(_Tag.STRIP_ROWS, height), height
    )
    strips = max((fields[tag].values for tag in _OFFSETS if tag in fields), default=1)
    bits = fields.get(_Tag.BITS, _Field(_Kind.SHORT, 1, 1))  # of the first sample; the others are alike
    depth = next(iter(_values(data, bits)), bits.value)
    return TiffPage(
        pixels=max(width * height, strip * strips),
        strip_pixels=strip,
        pixel_bytes=max(1, depth * value.get(_Tag.SAMPLES, 1) // 8),
        strips=strips,
        packed_bytes=max((sum(_values(data, fields[tag])) for tag in _LENGTHS if tag in fields), default=0),
        depth=depth,
        is_compressed=value.get(_Tag.COMPRESSION, 1) != 1,
        is_planar=value.get(_Tag.PLANAR, 1) == 2,
        is_big_endian=_order(data) == ">",
    )


def _values(data: bytes, field: _Field) -> tuple[int, ...]:
    """Return the values of a field of whole numbers that stand at its offset in `data`; none for those that it holds itself."""
    letter, size = ("H", 2) if field.kind == _Kind.SHORT else ("I", 4)
    packed = data[field.value : field.value + size * field.values]
    if size * field.values <= _INLINE_BYTES:
        return ()
    return struct.unpack(f"{_order(data)}{len(packed) // size}{letter}", packed[: len(packed) // size * size])


def _entries(data: bytes) -> Iterator[tuple[int, int, _Field]]:
    """Yield position, tag and field of each entry of the first directory that stands in `data`. Raises UndecodableImage."""
    order = _order(data)
    (start,) = struct.unpack_from(order + "I", data.ljust(8, b"\x00"), 4)
    (count,) = struct.unpack(order + "H", data[start : start + 2].ljust(2, b"\x00"))
    if count > _MAX_FIELDS:
        raise UndecodableImage("damaged TIFF: more fields than any program writes")
    for position in range(start + 2, min(start + 2 + 12 * count, len(data) - 11), 12):
        tag, kind, values, value = struct.unpack_from(order + "HHII", data, position)
        if kind == _Kind.SHORT and 2 * values <= _INLINE_BYTES:
            value = value >> 16 if order == ">" else value & 0xFFFF
        yield position, tag, _Field(kind, values, value)


def _order(data: bytes) -> str:
    """The order of bytes, as `struct` writes it."""
    return "<" if data[:2] == b"II" else ">"
