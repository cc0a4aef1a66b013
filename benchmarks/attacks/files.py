"""Small images that are expensive to decode. Each function returns the bytes of one file."""

import io
import random
import struct
import zlib

from PIL import Image

MIB = 2**20
_TILE_WIDTH, _TILE_ROWS = 1_560_000, 16  # 24.96 million pixels, just below ODDIGIT_MAX_PIXELS
_TAGS = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262, "samples": 277, "predictor": 317}
_FAX_ROWS, _DEFLATE, _ZSTD = 2, 8, 50000


def tiff_tiles(tiles: int) -> bytes:
    """A grey TIFF of width 1 whose `tiles` tiles of 25 million pixels all point at the same 24 KB of deflated zeros.

    1,000 tiles make 32 KB and 50 s of decoding, 30,000 make 266 KB and half an hour.
    """
    packed = zlib.compress(bytes(_TILE_WIDTH * _TILE_ROWS), 9)
    fields = {"width": 1, "height": tiles * _TILE_ROWS, "bits": 8, "compression": _DEFLATE, "photometric": 1, "samples": 1}
    return _tiff(fields, packed, tiles, offsets=324, lengths=325, extra={322: _TILE_WIDTH, 323: _TILE_ROWS})


def tiff_zstd_tiles(tiles: int) -> bytes:
    """The same with RGBA tiles of runs (Zstandard) and a predictor: 325 tiles make 5.5 KB and 17 s of decoding."""
    fields = {"width": 1, "height": tiles * _TILE_ROWS, "compression": _ZSTD, "photometric": 2, "samples": 4, "predictor": 2}
    return _tiff(
        fields,
        _zstd_zeros(_TILE_WIDTH * _TILE_ROWS * 4),
        tiles,
        offsets=324,
        lengths=325,
        extra={322: _TILE_WIDTH, 323: _TILE_ROWS},
        rgba=True,
    )


def tiff_strips(strips: int, packed_size: int = 100_000) -> bytes:
    """A TIFF of width 1 whose strips of one pixel all point at the same deflate stream of `packed_size` / 5 empty blocks."""
    empty = b"\x00\x00\x00\xff\xff" * (packed_size // 5)
    packed = b"\x78\x01" + empty + zlib.compress(b"\x00")[2:]
    fields = {"width": 1, "height": strips, "bits": 8, "compression": _DEFLATE, "photometric": 1, "samples": 1}
    return _tiff(fields, packed, strips, offsets=273, lengths=279, extra={278: 1})


def webp_solid(side: int = 5000) -> bytes:
    """A lossless WebP of one colour: five Huffman codes of one symbol each, and no bit for any pixel (RFC 9649, section 3)."""
    fields = [(side - 1, 14), (side - 1, 14), (0, 1), (0, 3), (0, 3), *[(1, 1), (0, 1), (0, 1), (0, 1)] * 5]
    bits = position = 0
    for value, width in fields:
        bits |= value << position
        position += width
    body = b"\x2f" + bits.to_bytes((position + 7) // 8, "little")
    body = body.ljust(14, b"\x00")
    return b"RIFF" + struct.pack("<I", len(body) + 12) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


def jpeg_scans(scans: int = 60, side: int = 5000) -> bytes:
    """A progressive JPEG of three components whose scans visit every coefficient, 16 bytes each."""
    tables = b"\xff\xdb" + struct.pack(">HB", 67, 0) + b"\x01" * 64
    tables += b"".join(
        b"\xff\xc4" + struct.pack(">HB", 20, kind) + b"\x01" + bytes(15) + bytes([symbol])
        for kind, symbol in ((0x00, 0x00), (0x10, 0xE0))
    )
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 17, 8, side, side, 3) + b"\x01\x11\x00\x02\x11\x00\x03\x11\x00"
    first = b"\xff\xda\x00\x0c\x03\x01\x00\x02\x00\x03\x00\x00\x00\x01\x00\x00"
    others = b"".join(
        b"\xff\xda\x00\x08\x01" + bytes([1 + index % 3]) + b"\x00\x01\x3f\x00" + bytes(6) for index in range(scans - 1)
    )
    return b"\xff\xd8" + tables + frame + first + others + b"\xff\xd9"


def jpeg_fill_bytes(size: int = 10 * MIB - 2048) -> bytes:
    """A small JPEG with `size` fill bytes before its first marker, which Pillow would read one by one in Python."""
    whole = _saved("JPEG")
    return whole[:2] + b"\xff" * size + whole[2:]


def gif_comments(size: int = 10 * MIB - 2048, *, many: bool = False) -> bytes:
    """A small GIF with `size` bytes of comment: one in blocks of a byte, or `many` comments of one byte each."""
    whole = _saved("GIF")
    image = whole.index(b"\x2c\x00\x00\x00\x00")
    comments = b"\x21\xfe\x01x\x00" * (size // 5) if many else b"\x21\xfe" + b"\x01x" * (size // 2) + b"\x00"
    return whole[:image] + comments + whole[image:]


def png_large(side: int = 5000) -> bytes:
    """An interlaced PNG of one colour, with transparency, of as many pixels as are accepted."""
    row = zlib.compress(b"\x00" * (side * side * 4 + 2 * side * 7), 9)
    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 1)
    return _png([(b"IHDR", header), (b"IDAT", row), (b"IEND", b"")])


def png_two_headers(side: int = 5000) -> bytes:
    """A PNG of 28 x 28 pixels by its first header, of `side` x `side` by its second, of which one row is there: 178 bytes."""
    row = zlib.compress(bytes(1 + 2 * side), 9) + bytes(64)
    headers = [(b"IHDR", struct.pack(">IIBBBBB", *size, 0, 0, 0, 0)) for size in ((28, 28, 8), (side, side, 16))]
    return _png([*headers, (b"IDAT", row), (b"IEND", b"")])


def tiff_fields(fields: int = 13_000) -> bytes:
    """A TIFF of nothing but the fields of a directory."""
    entries = b"".join(struct.pack("<HHII", 1_000 + index, 4, 1, index) for index in range(fields))
    return b"II*\x00\x08\x00\x00\x00" + struct.pack("<H", fields) + entries + bytes(4)


def tiff_damaged_rows(rows: int = 200_000) -> bytes:
    """A TIFF of 4 KB whose strips all point at the same noise, for each row of which libtiff prints a message."""
    strips = rows // 2_000
    fields = {"width": 100, "height": rows, "bits": 1, "compression": _FAX_ROWS, "photometric": 0, "samples": 1}
    noise = random.Random(3).randbytes(3_000)
    return _tiff(fields, noise, strips, offsets=273, lengths=279, extra={278: 2_000})


def gif_small_screen(side: int = 5000) -> bytes:
    """A GIF with a screen of one pixel and a picture of `side` x `side`."""
    out = io.BytesIO()
    Image.new("P", (side, side)).save(out, "GIF")
    return out.getvalue()[:6] + b"\x01\x00\x01\x00" + out.getvalue()[10:]


def png_small(side: int = 100) -> bytes:
    """A PNG of few bytes and pixels whose preparation takes as long as that of a photograph: a gradient."""
    out = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).save(out, "PNG")
    return out.getvalue()


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def _saved(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("L", (28, 28)).save(out, kind)
    return out.getvalue()


def _tiff(
    fields: dict[str, int], packed: bytes, pieces: int, *, offsets: int, lengths: int, extra: dict[int, int], rgba: bool = False
) -> bytes:
    """A little-endian TIFF with one directory, whose `pieces` tiles or strips all lie at the place of `packed`."""
    values = {_TAGS[name]: value for name, value in fields.items()} | extra
    entry_count = len(values) + 2 + 2 * rgba
    bits_at = 8 + 2 + 12 * entry_count + 4
    offsets_at = bits_at + 8
    lengths_at = offsets_at + 4 * pieces
    entries = {tag: (4, 1, value) for tag, value in values.items()}
    entries |= {offsets: (4, pieces, offsets_at), lengths: (4, pieces, lengths_at)}
    if rgba:
        entries |= {258: (3, 4, bits_at), 338: (3, 1, 2)}
    directory = b"".join(struct.pack("<HHII", tag, *entries[tag]) for tag in sorted(entries))
    head = struct.pack("<2sHIH", b"II", 42, 8, entry_count) + directory + bytes(4) + struct.pack("<4H", 8, 8, 8, 8)
    data_at = lengths_at + 4 * pieces
    return head + struct.pack("<I", data_at) * pieces + struct.pack("<I", len(packed)) * pieces + packed


def _zstd_zeros(size: int) -> bytes:
    """`size` zeros as a Zstandard frame of run-length blocks of at most 128 KiB (RFC 8878, section 3.1.1.2)."""
    out = b"\x28\xb5\x2f\xfd\x00\x58"
    while size:
        block = min(size, 128 * 1024)
        size -= block
        out += (block << 3 | 1 << 1 | (size == 0)).to_bytes(3, "little") + b"\x00"
    return out
