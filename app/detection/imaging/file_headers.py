"""What the bytes of an upload say of themselves before anything is decoded, and the errors that this may end in.

Bytes in; type, size, orientation, the essential chunks, or an `ImageError` out, whose message is a sentence for the sender.
Everything here reads a claim and checks it against the bytes at hand; nothing is unpacked beyond 1 MiB. Knows no Pillow.

    ImageError
     +- UndecodableImage   damaged, truncated, or not an image at all
     +- UnsupportedImage   a known type outside the allow-list (SVG, PDF, HEIC, ...)
     +- ImageTooLarge      more pixels than accepted
     +- TooManyImages      more images in one array than accepted
"""

import math
import re
import struct
import zlib


class ImageError(ValueError):
    """An upload that cannot be used; the message says why, in words for the sender."""


class UndecodableImage(ImageError):
    """Damaged, truncated, or no image at all."""


class UnsupportedImage(ImageError):
    """A recognised type that is not on the allow-list."""


class ImageTooLarge(ImageError):
    """More pixels than are accepted, by the header's own account."""


class TooManyImages(ImageError):
    """More images in one array than are accepted."""


# ---------------------------------------------------------------------------------------------------- what kind of file

_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"BM": "BMP",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
}
_OTHERS = {  # worth a better answer than "not an image"
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
    for signature, kind in _SIGNATURES.items():
        if data.startswith(signature):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    for pattern, name in _OTHERS.items():
        if re.match(pattern, data[:256], re.DOTALL | re.IGNORECASE):
            raise UnsupportedImage(f"{name} is not accepted; send PNG, JPEG, WebP, BMP, GIF or TIFF")
    raise UndecodableImage("not an image: no known signature" if data else "the file is empty")


# ------------------------------------------------------------------------------------------------------- PNG, WebP, JPEG

_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND"}
_ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
_MAX_TEXT = 1 << 20
_MAX_SEGMENTS = 1000
_MAX_SCANS = 100  # usual are 1 to 20; minutes of work fit in a megabyte of them
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # no stuffed byte, no restart
_MAX_CHUNKS = 20_000  # IDAT chunks of 8 KiB make 160 MiB
_QUICK = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_QUICK_BYTES, _QUICK_PIXELS = 2048, 10_000


def essential_png(data: bytes) -> bytes:
    """The chunks that make the picture, checked. Text, profiles and animation are left out: Pillow unpacks and keeps them."""
    kept, position, spent, chunks, name = [data[:8]], 8, 0, 0, b""
    while name != b"IEND":
        head = data[position : position + 8]
        length, name = int.from_bytes(head[:4]), head[4:]
        end = position + 12 + length
        chunks += 1
        if len(head) < 8 or end > len(data):
            raise UndecodableImage("truncated PNG")
        if chunks > _MAX_CHUNKS:
            raise UndecodableImage("damaged PNG: too many chunks")
        if name in _KEPT:
            if zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
                raise UndecodableImage("damaged PNG: a checksum does not match")
            kept.append(data[position:end])
        else:
            spent += _unpacked_length(name, data[position + 8 : end - 4])
            if spent > _MAX_TEXT:
                raise UndecodableImage("damaged PNG: its texts unpack to more than 1 MiB")
        position = end
    _check_rows(kept)
    return b"".join(kept)


def _check_rows(chunks: list[bytes]) -> None:
    """Pillow leaves rows black that a picture's stream does not reach; here it is refused as cut short."""
    header = next((chunk[8:21] for chunk in chunks if chunk[4:8] == b"IHDR"), b"").ljust(13, b"\x00")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * {2: 3, 4: 2, 6: 4}.get(colour, 1)
    passes = _ADAM7 if interlaced else [(0, 0, 1, 1)]
    wanted = 0
    for x, y, step_x, step_y in passes:
        columns, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        wanted += rows * (1 + (columns * bits + 7) // 8) if columns > 0 and rows > 0 else 0
    inflate = zlib.decompressobj()
    for chunk in chunks:
        if chunk[4:8] == b"IDAT":
            wanted -= _inflated(inflate, chunk[8:-4], wanted)
    if wanted > 0:
        raise UndecodableImage("truncated PNG")


def _inflated(inflate: "zlib._Decompress", packed: bytes, limit: int) -> int:
    """Bytes that `packed` unpacks to, up to `limit`, 1 MiB in memory at a time."""
    count = 0
    while packed and count < limit and not inflate.eof:
        count += len(inflate.decompress(packed, min(1 << 20, limit - count)))
        packed = inflate.unconsumed_tail
    return count


def _unpacked_length(name: bytes, body: bytes) -> int:
    """Bytes that a compressed text or profile unpacks to, counted no further than the limit."""
    if name not in (b"zTXt", b"iCCP", b"iTXt"):
        return 0
    packed = body.partition(b"\x00")[2][1:]
    if name == b"iTXt":  # keyword \0 flag method language \0 translated keyword \0 text
        packed = packed[1:].split(b"\x00", 2)[-1]
    try:
        return len(zlib.decompressobj().decompress(packed, _MAX_TEXT + 1))
    except zlib.error:
        return _MAX_TEXT // 16  # it cost work before it broke


def claimed_size(data: bytes, kind: str) -> tuple[int, int] | None:
    """(width, height) by the header's word; None for BMP and TIFF, whose own reader is quick and frugal enough."""
    match kind:
        case "PNG":
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
    """Canvas size from the first chunk: VP8X, VP8L or VP8 (RFC 9649, sections 2.5 to 2.7)."""
    if len(data) < max(30, int.from_bytes(data[4:8], "little") + 8):
        raise UndecodableImage("truncated WEBP")
    chunk, body = data[12:16], data[20:30]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", body[6:10])
    return width & 0x3FFF, height & 0x3FFF


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """From the frame header, marker by marker to the picture's end (ITU-T T.81, B.1.1), past what decoders skip: padding and
    noise between segments. Millions of segments are work for Pillow, and each scan walks the whole picture."""
    position, size, scans = 2, (0, 0), 0
    for _ in range(_MAX_SEGMENTS):
        found = _JPEG_MARKER.search(data, position)
        if found is None or (mark := data[found.end() - 1]) == 0xD9:
            break
        position = found.end()
        if mark in (0x01, 0xD8):  # stand alone
            continue
        length = int.from_bytes(data[position : position + 2])
        if 0xC0 <= mark <= 0xCF and mark not in (0xC4, 0xC8, 0xCC):
            frame = data[position + 3 : position + 7]
            size = max(size, (int.from_bytes(frame[2:]), int.from_bytes(frame[:2])), key=math.prod)  # only one is honest
        scans += mark == 0xDA
        if scans > _MAX_SCANS:
            raise UndecodableImage("damaged JPEG: too many scans")
        position += length
    else:
        raise UndecodableImage("damaged JPEG: more segments than any camera writes")
    if not scans:
        raise UndecodableImage("truncated JPEG")
    return size


def decoding_is_quick(data: bytes) -> bool:
    """Whether a picture decodes in a millisecond or two, by its header: a PNG or JPEG of few bytes and few pixels. Of other
    types a few bytes may stand for any work, or the header bounds nothing."""
    if len(data) > _QUICK_BYTES or not data.startswith(_QUICK):
        return False
    kind = "PNG" if data.startswith(_QUICK[0]) else "JPEG"
    try:
        width, height = claimed_size(data, kind) or (0, 0)
    except ImageError:
        return True  # to be refused
    return width * height <= _QUICK_PIXELS


# ------------------------------------------------------------------------------------------------------------- BMP, TIFF

_MAX_RUN_PIXELS = 1_000_000  # Pillow unpacks run lengths in Python


def check_bmp(data: bytes) -> None:
    """Refuse a large run-length encoded bitmap: a few bytes of it are seconds of work."""
    width, height, _, _, method = struct.unpack_from("<iiHHI", data.ljust(34, b"\x00"), 18)
    if int.from_bytes(data[14:18], "little") >= 40 and method in (1, 2) and abs(width * height) > _MAX_RUN_PIXELS:
        raise ImageTooLarge(f"a run-length encoded BMP of more than {_MAX_RUN_PIXELS:,} pixels; send it as PNG")


_TIFF_BYTES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8)  # a value of each type of a directory (TIFF 6.0, section 2)
_MAX_STRIPS = 65_536
_STRIPS = {273, 324}  # where strips and tiles lie


def check_tiff(data: bytes) -> None:
    """Refuse a first directory whose values take more than the file has, or that cuts the picture into countless pieces."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data.ljust(8, b"\x00"), 4)
    (many,) = struct.unpack(order + "H", data[start : start + 2].ljust(2, b"\x00"))
    entries = data[start + 2 : start + 2 + 12 * many]
    taken = 0
    for tag, kind, count, _ in struct.iter_unpack(order + "HHII", entries[: len(entries) // 12 * 12]):
        if tag in _STRIPS and count > _MAX_STRIPS:
            raise UndecodableImage("damaged TIFF: more strips than any scanner writes")
        taken += count * (_TIFF_BYTES[kind] if kind < len(_TIFF_BYTES) else 1)
        if taken > len(data):
            raise UndecodableImage("truncated TIFF: its directory promises more than the file holds")


# ---------------------------------------------------------------------------------------------------------- EXIF and .npy


def exif_orientation(exif: bytes) -> int:
    """Tag 0x0112 of the first directory (TIFF 6.0, section 2), or 1. Pillow's own reader warns about everything else in it."""
    tiff = exif.removeprefix(b"Exif\x00\x00") if isinstance(exif, bytes) else b""
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 10:
        return 1
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    entries = tiff[start + 2 : start + 2 + 12 * 256]
    for at in range(0, len(entries) - 11, 12):
        tag, _, _, value = struct.unpack_from(order + "HHIH", entries, at)
        if tag == 0x0112:
            return int(value)
    return 1


def npy_header(data: bytes) -> tuple[bytes, int]:
    """The header's text and where the data begin."""
    if data[:6] != b"\x93NUMPY":
        raise UndecodableImage("not a .npy array: no known signature")
    if data[6:8] not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        raise UndecodableImage("a .npy array of an unknown version; versions 1 to 3 are read")
    start = 10 if data[6] == 1 else 12
    end = start + int.from_bytes(data[8:start], "little")
    if len(data) < max(start, end):
        raise UndecodableImage("truncated .npy header")
    return data[start:end], end


def npy_field(header: bytes, name: bytes, value: bytes) -> bytes:
    """A field of the header's dict. Matched, not evaluated: the text is the sender's."""
    found = re.search(rb"['\"]" + name + rb"['\"]\s*:\s*(" + value + rb")\s*[,}]", header[:1024])
    if found is None:
        raise UndecodableImage(f"the .npy header has no readable '{name.decode()}'")
    return bytes(found[1])


def npy_shape(header: bytes) -> tuple[int, ...]:
    if re.search(rb"['\"]descr['\"]\s*:\s*['\"][|<>=]?u1['\"]", header[:1024]) is None:
        raise UndecodableImage("the array's type is not uint8; send 0 for background to 255 for ink")
    return tuple(int(number) for number in re.findall(rb"\d+", npy_field(header, b"shape", rb"\([\d\s,]{0,64}\)")))
