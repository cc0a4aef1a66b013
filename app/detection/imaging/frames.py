"""Counts the pictures of a file from its headers: pages of a TIFF, frames of an animation. Only the first one is decoded.

Input: the bytes of an upload, which may be damaged. Output: a count, which is an estimate for damaged files.
"""

from typing import Literal

from app.detection.imaging.file_headers import gif_header_length

_MAX_PNG_CHUNKS = 1000  # that are followed
_MAX_PAGES = 1000  # of a TIFF that are counted
_IMAGE_SEPARATOR, _EXTENSION_INTRODUCER = 0x2C, 0x21  # the first bytes of a GIF's blocks
_MAX_GIF_BLOCKS = 20_000  # that are followed: 5 MB of pictures in 3 ms


def count_frames(data: bytes) -> int:
    """The number of pictures in the file, at least 1."""
    if data.startswith(b"GIF8"):
        return max(1, _count_gif_frames(data))
    if data.startswith(b"\x89PNG"):
        return max(1, _count_png_frames(data))
    if data.startswith(b"RIFF") and data[12:16] == b"VP8X" and data[20:21] and data[20] & 0x02:
        return max(1, data.count(b"ANMF"))
    if data[:4] in (b"II*\x00", b"MM\x00*"):
        return _count_pages(data)
    return 1


def _count_png_frames(data: bytes) -> int:
    """Follow the chunks of a PNG before its image data to the acTL chunk of an animation (APNG)."""
    position = 8
    for _ in range(_MAX_PNG_CHUNKS):
        length, kind = int.from_bytes(data[position : position + 4]), data[position + 4 : position + 8]
        if kind == b"acTL":
            return int.from_bytes(data[position + 8 : position + 12])
        if kind in (b"IDAT", b""):
            break
        position += 12 + length
    return 1


def _count_gif_frames(data: bytes) -> int:
    """Follow the blocks of a GIF (GIF89a, sections 20 to 26), and count those that begin a picture."""
    position, frames, blocks = gif_header_length(data), 0, 0
    while blocks < _MAX_GIF_BLOCKS and position + 9 < len(data):
        if data[position] == _IMAGE_SEPARATOR:
            frames, flags = frames + 1, data[position + 9]
            position += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)  # descriptor, colour table, size of a code
        elif data[position] == _EXTENSION_INTRODUCER:
            position += 2
        else:
            break
        while position < len(data) and data[position] and blocks < _MAX_GIF_BLOCKS:
            position, blocks = position + 1 + data[position], blocks + 1
        position, blocks = position + 1, blocks + 1
    return frames


def _count_pages(data: bytes) -> int:
    """Follow the chain of image file directories of a TIFF (TIFF 6.0, section 2)."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    position, pages, seen = int.from_bytes(data[4:8], order), 0, set[int]()
    while 8 <= position < len(data) and position not in seen and pages < _MAX_PAGES:
        seen.add(position)
        pages += 1
        end = position + 2 + 12 * int.from_bytes(data[position : position + 2], order)
        position = int.from_bytes(data[end : end + 4], order)
    return max(1, pages)
