"""Checks on the header of an image file, made before any decoder runs.

Input: the bytes of an upload. Output: file type, width and height, or a PNG, JPEG or GIF without its metadata. Every check
raises an `ImageError` for a file that is damaged. Uses the standard library only.
"""

import math
import re
import struct
import zlib
from collections.abc import Iterator

from app.detection.imaging.errors import UndecodableImage, UnsupportedImage

_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"BM": "BMP",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
}
_UNSUPPORTED = {  # these get a better message than "not an image"
    rb"\s*(?:\xef\xbb\xbf)?\s*<(?:svg|\?xml|!DOCTYPE svg)": "SVG",
    rb"%PDF": "PDF",
    rb".{4}ftyp(?:avif|avis)": "AVIF",
    rb".{4}ftyp": "HEIC or video",
    rb"8BPS": "Photoshop",
    rb"\x00\x00[\x01\x02]\x00": "icon",
    rb"(?:\x00{3}\x0cjP  |\xff\x4f\xff\x51)": "JPEG 2000",
    rb"(?:\x00{3}\x0cJXL |\xff\x0a)": "JPEG XL",
    rb"(?:II\+\x00|MM\x00\+)": "BigTIFF",
    rb"%!PS": "PostScript",
    rb"P[1-7]\s": "Netpbm",
    rb"\x93NUMPY": ".npy (send it as application/x-npy)",
}


def sniff(data: bytes) -> str:
    """Return the Pillow format name of an accepted file type, read from the signature; raise an ImageError for any other."""
    for signature, kind in _SIGNATURES.items():
        if data.startswith(signature):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    for pattern, name in _UNSUPPORTED.items():
        if re.match(pattern, data[:256], re.DOTALL | re.IGNORECASE):
            raise UnsupportedImage(f"{name} is not accepted; send PNG, JPEG, WebP, BMP, GIF or TIFF")
    raise UndecodableImage("not an image: no known signature" if data else "the file is empty")


PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"  # signature, length and name of the header
_IMAGE_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND"}
_ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
_MAX_PACKING = 1.1  # compressed pixels may take this share of the bytes of the pixels ...
_PACKING_BYTES = 4096  # ... and this many more
_MAX_TEXT_BYTES = 1 << 20  # of compressed text and profiles, after decompression
_MAX_CHUNKS = 25_000  # of a PNG: 10 MiB of pixels in chunks of 512 bytes; libpng writes 8 KiB


def strip_png(data: bytes) -> bytes:
    """Check a PNG and its pixel data, and return it with only the chunks of its image and its EXIF data.

    Text, colour profiles and animation are removed, because Pillow would decompress them and keep them in memory.
    Pillow takes the size from the last IHDR chunk, so a file with two of them is refused.
    """
    kept, position, text_bytes, name, chunks = [data[:8]], 8, 0, b"", 0
    while name != b"IEND":
        if chunks == _MAX_CHUNKS:
            raise UndecodableImage("damaged PNG: more chunks than any program writes")
        head = data[position : position + 8]
        length, name = int.from_bytes(head[:4]), head[4:]
        end = position + 12 + length
        if len(head) < 8 or end > len(data):
            raise UndecodableImage("truncated PNG")
        if name == b"IHDR" and chunks:
            raise UndecodableImage("damaged PNG: it has two headers")
        if name in _IMAGE_CHUNKS:
            if zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
                raise UndecodableImage("damaged PNG: a checksum does not match")
            kept.append(data[position:end])
        else:
            text_bytes += _text_length(name, data[position + 8 : end - 4])
            if text_bytes > _MAX_TEXT_BYTES:
                raise UndecodableImage("damaged PNG: its texts unpack to more than 1 MiB")
        position, chunks = end, chunks + 1
    _check_rows(kept)
    return b"".join(kept)


def _check_rows(chunks: list[bytes]) -> None:
    """Raise UndecodableImage if the pixel data end early. Pillow would leave the missing rows black."""
    header = next((chunk[8:21] for chunk in chunks if chunk[4:8] == b"IHDR"), b"").ljust(13, b"\x00")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * {2: 3, 4: 2, 6: 4}.get(colour, 1)
    passes = _ADAM7 if interlaced else [(0, 0, 1, 1)]
    missing = 0
    for x, y, step_x, step_y in passes:
        columns, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        missing += rows * (1 + (columns * bits + 7) // 8) if columns > 0 and rows > 0 else 0
    if sum(len(chunk) - 12 for chunk in chunks if chunk[4:8] == b"IDAT") > _MAX_PACKING * missing + _PACKING_BYTES:
        raise UndecodableImage("damaged PNG: more data than pixels")  # empty blocks take time too
    inflate = zlib.decompressobj()
    for chunk in chunks:
        if chunk[4:8] == b"IDAT":
            missing -= _inflated_length(inflate, chunk[8:-4], missing)
    if missing > 0:
        raise UndecodableImage("truncated PNG")


def _inflated_length(inflate: "zlib._Decompress", packed: bytes, limit: int) -> int:
    """Return how many bytes `packed` decompresses to, at most `limit`. Holds at most 1 MiB of them in memory."""
    count = 0
    while packed and count < limit and not inflate.eof:
        count += len(inflate.decompress(packed, min(1 << 20, limit - count)))
        packed = inflate.unconsumed_tail
    return count


def _text_length(name: bytes, body: bytes) -> int:
    """Return how many bytes a compressed text or profile decompresses to; a number above _MAX_TEXT_BYTES for a large one."""
    if name not in (b"zTXt", b"iCCP", b"iTXt"):
        return 0
    packed = body.partition(b"\x00")[2][1:]
    if name == b"iTXt":  # keyword \0 flag method language \0 translated keyword \0 text
        if body.partition(b"\x00")[2][:1] == b"\x00":
            return 0  # not compressed
        packed = packed[1:].split(b"\x00", 2)[-1]
    if len(packed) > _MAX_TEXT_BYTES:
        return len(packed)
    try:
        return len(zlib.decompressobj().decompress(packed, _MAX_TEXT_BYTES + 1))
    except zlib.error:
        return _MAX_TEXT_BYTES // 16  # damaged data cost time too


_GIF_BLOCK = re.compile(rb"[!,;]")  # begins an extension, begins a picture, ends the file
_MAX_EXTENSIONS = 1000  # before the first picture ...
_MAX_SUB_BLOCKS = 50_000  # ... and their parts, of at most 255 bytes each


def strip_gif(data: bytes) -> bytes:
    """Return the GIF without what precedes its first picture, except the header and the last graphic control extension.

    Pillow would gather all comments, and copy what it has for each further block of 255 bytes. A damaged file is cut where its
    blocks cannot be followed, and the decoder refuses it.
    """
    position, extensions, parts = gif_header_length(data), 0, 0
    header, control = data[:position], b""
    while (found := _GIF_BLOCK.search(data, position)) and found[0] == b"!":
        start, extensions = found.start(), extensions + 1
        for after in _gif_sub_blocks(data, start + 2):
            position, parts = after, parts + 1
            if extensions > _MAX_EXTENSIONS or parts > _MAX_SUB_BLOCKS:
                raise UndecodableImage("damaged GIF: more extensions than any program writes")
        if data[start + 1 : start + 2] == b"\xf9":
            control = data[start:position]
    return header + control + (data[found.start() :] if found else b"")


def gif_header_length(data: bytes) -> int:
    """Return the length of a GIF's header with its colour table."""
    flags = data[10] if len(data) > 10 else 0
    return 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)


def _gif_sub_blocks(data: bytes, position: int) -> Iterator[int]:
    """Yield the position after each data sub-block of a sequence, which an empty one ends (GIF89a, section 15)."""
    while position < len(data) and data[position]:
        position += 1 + data[position]
        yield position
    yield position + 1


def declared_size(data: bytes, kind: str) -> tuple[int, int] | None:
    """Return (width, height) from the header; None for BMP and TIFF, where Pillow reads the size without decoding."""
    match kind:
        case "PNG":
            if not data.startswith(PNG_START):
                raise UndecodableImage("damaged PNG: it does not begin with its header")
            return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
        case "GIF":
            return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
        case "WEBP":
            return _webp_size(data)
        case "JPEG":
            return _jpeg_size(data)
        case _:
            return None


def _webp_size(data: bytes) -> tuple[int, int]:
    """Read (width, height) from the first chunk: VP8X, VP8L or VP8 (RFC 9649, sections 2.5 to 2.7)."""
    chunk, body = data[12:16], data[20:30]
    if len(body) < 10:
        raise UndecodableImage("truncated WEBP")
    if chunk == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", body[6:10])
    return width & 0x3FFF, height & 0x3FFF


_MAX_SEGMENTS = 400  # 10 MiB in the largest segments are 160
_MAX_PADDING = 32 * 1024  # bytes between all segments
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # a stuffed byte or a restart marker is not a segment
_EOI, _SOS, _COM = 0xD9, 0xDA, 0xFE
_JFIF, _EXIF, _ADOBE = 0xE0, 0xE1, 0xEE  # the JFIF and Adobe segments define the colour space
_WITHOUT_LENGTH = (0x01, 0xD8)
_ARITHMETIC = (0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)  # frames; twenty times as slow to decode, and no camera writes them


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment up to the first scan (ITU-T T.81, B.1.1); skip padding and noise.

    Raises UndecodableImage for more segments or padding than any camera writes: they take time, here and in Pillow.
    """
    position, padding = 2, _MAX_PADDING
    for _ in range(_MAX_SEGMENTS):
        found = _JPEG_MARKER.search(data, position, position + padding + 2)
        if found is None or (marker := data[found.end() - 1]) == _EOI:
            break
        padding -= found.start() - position
        position = found.end()
        if marker not in _WITHOUT_LENGTH:
            position += int.from_bytes(data[position : position + 2])
            yield marker, found.start(), position
        if marker == _SOS:
            return
    raise UndecodableImage("truncated or damaged JPEG: no picture follows its header")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Read (width, height) from the frame headers; a file can declare several."""
    size = (0, 0)
    for marker, start, _ in _jpeg_segments(data):
        if marker in _ARITHMETIC:
            raise UnsupportedImage("JPEG with arithmetic coding is not accepted; save it with Huffman coding")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = data[start + 5 : start + 9]
            size = max(size, (int.from_bytes(frame[2:]), int.from_bytes(frame[:2])), key=math.prod)
    if size == (0, 0):
        raise UndecodableImage("truncated JPEG")
    return size


def count_jpeg_scans(data: bytes) -> int:
    """Return how many scans of the first picture begin in `data`; those of a preview in its EXIF data do not count.

    Phones append other pictures, so the end of the first one counts, and not one inside of a comment. What follows more
    segments than any camera writes is not read: it counts as scans.
    """
    scans, position = 1, next((end for marker, _, end in _jpeg_segments(data) if marker == _SOS), 0)
    for _ in range(_MAX_SEGMENTS):
        found = _JPEG_MARKER.search(data, position)
        if found is None or (marker := data[found.end() - 1]) == _EOI:
            return scans
        scans += marker == _SOS
        position = found.end()
        if marker not in _WITHOUT_LENGTH:
            position += int.from_bytes(data[position : position + 2])
    return _MAX_SEGMENTS


def strip_jpeg(data: bytes) -> bytes:
    """Return the JPEG without comments and application data before its first scan, except for colours and EXIF data.

    Pillow would read padding byte by byte, and keep all of these segments.
    """
    kept, seen, start = [data[:2]], set[int](), 2
    for marker, start, end in _jpeg_segments(data):
        if marker == _COM or marker & 0xF0 == 0xE0:
            is_read = marker in (_JFIF, _ADOBE) or (marker == _EXIF and data[start + 4 : start + 10] == b"Exif\x00\x00")
            if not is_read or marker in seen:
                continue
            seen.add(marker)
        if marker != _SOS:
            kept.append(data[start:end])
    return b"".join([*kept, data[start:]])
