"""How long the decoding of an image file will take, read from its header.

The estimate decides which queue an upload waits in, and when it is refused; a limit on the CPU time catches files whose header
tells less than their decoding takes. The constants were measured on one core with images of noise and of 25 million pixels.
"""

import math
import struct

from app.detection.imaging.errors import DecodingTooLong, UndecodableImage
from app.detection.imaging.file_headers import count_jpeg_scans, declared_size, sniff
from app.detection.imaging.tiff import MAX_PIXEL_SHARE, read_tiff_page

HEAD_BYTES = 256 * 1024  # enough for an estimate: segments of 64 KiB each may stand before the frame header of a JPEG

_BASE_S = 0.002  # opening and preparing any image
_SECONDS_PER_BYTE = 10e-9  # Pillow reads the comments of a GIF in steps of 255 bytes
_MAX_READ_BYTES = 2**28  # a larger file has other pages, which are not read
_SECONDS_PER_PIXEL = {"PNG": 25e-9, "JPEG": 3e-9, "WEBP": 25e-9, "GIF": 12e-9, "BMP": 10e-9, "TIFF": 25e-9}
_SECONDS_PER_SCAN_PIXEL = 1.2e-9  # of a progressive JPEG, for each scan
_MAX_ENCODER_SCANS = 20  # encoders write at most this many; libjpeg writes 10
_SECONDS_PER_EXTRA_SCAN_PIXEL = 8e-9  # for each scan above that: the estimate of such a file exceeds the limit
_SECONDS_PER_RLE_BYTE = 0.7e-6  # of a BMP with run lengths, which Pillow decodes in Python
_WIDE_PNG = b"\x10\x06"  # 16 bits, colours with alpha ...
_WIDE_PNG_FACTOR = 3  # ... take this multiple of the time
_BMP_HEAD_BYTES = 2048  # with a palette
_RLE_BYTES_PER_PIXEL = 4  # at most: two for the pixel, two for the end of its line
_SECONDS_PER_STRIP = 10e-6  # or tile, of a TIFF without compression, which Pillow reads one by one
_MAX_SECONDS = 8.0  # no accepted image takes more than 2 s, and no estimate of one is wrong by more than a factor of 4

_BMP_CORE_HEADER = b"\x0c"  # length of the oldest header, whose fields are smaller


def decoding_seconds(data: bytes, max_pixels: int, length: int | None = None) -> float:
    """Return the CPU seconds that decoding takes, for a file or for the first HEAD_BYTES of a file of `length` bytes.

    A file that declares more than `max_pixels` costs next to nothing, because it is refused before it is decoded.
    Raises DecodingTooLong for a file that no accepted image is like, and another ImageError where the file type is not accepted
    or the header is damaged.
    """
    kind, length = sniff(data), length or len(data)
    page = read_tiff_page(data, length) if kind == "TIFF" else None
    pixels = page.pixels if page else _declared_pixels(data, kind, max_pixels if len(data) < length else None)
    seconds, read_bytes = _SECONDS_PER_PIXEL[kind], min(length, _MAX_READ_BYTES)
    total_s = _BASE_S + _SECONDS_PER_BYTE * read_bytes
    if kind == "JPEG" and (scans := _count_scans(data)) > 1:
        seconds += _SECONDS_PER_SCAN_PIXEL * scans + _SECONDS_PER_EXTRA_SCAN_PIXEL * max(0, scans - _MAX_ENCODER_SCANS)
    elif kind == "BMP" and data[14:15] != _BMP_CORE_HEADER and data[30:31] in (b"\x01", b"\x02"):
        total_s += _SECONDS_PER_RLE_BYTE * read_bytes
        if length > _BMP_HEAD_BYTES + _RLE_BYTES_PER_PIXEL * pixels:
            raise UndecodableImage("damaged BMP: more run lengths than pixels")
    elif kind == "PNG" and data[24:26] == _WIDE_PNG:
        seconds *= _WIDE_PNG_FACTOR
    if pixels > max_pixels * (MAX_PIXEL_SHARE if kind == "TIFF" else 1):
        pixels = 0
    total_s += seconds * pixels
    if page:
        total_s += _SECONDS_PER_BYTE * page.packed_bytes + (0 if page.is_compressed else _SECONDS_PER_STRIP * page.strips)
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
        size = None
    return math.prod(size) if size else unknown or 0
