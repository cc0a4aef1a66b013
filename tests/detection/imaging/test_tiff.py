"""The directory of a TIFF: what programs write is read, and what it points to beside the picture is not."""

import struct

import numpy as np
import pytest
from PIL import Image
from strokes import encoded

from app.detection.imaging.decode import decode_image
from app.detection.imaging.decoding_cost import HEAD_BYTES, decoding_seconds
from app.detection.imaging.errors import UndecodableImage, UnsupportedImage
from app.detection.imaging.tiff import check_layout, read_tiff_page, without_directories

PIXELS = np.random.RandomState(0).randint(0, 256, (28, 28)).astype(np.uint8)
EXIF, GPS, INTEROPERABILITY = 34665, 34853, 40965
MOST = 25_000_000


PLAIN = {256: (4, 28), 257: (4, 28), 258: (3, 8), 262: (3, 1), 273: (4, 8), 279: (4, 784)}  # tag: type, value


def tiff(*entries, order="<", pixels=None, tail=b"", **changes):
    """28x28 pixels and further fields (tag, type, count, value); their values may stand in `tail`, after the pixels."""
    pixels = PIXELS.tobytes() if pixels is None else pixels
    plain = PLAIN | {int(tag[1:]): value for tag, value in changes.items()} | {279: (4, len(pixels))}
    rows = b""
    for tag, kind, count, value in sorted([*((tag, kind, 1, value) for tag, (kind, value) in plain.items()), *entries]):
        is_short = kind == 3 and count == 1
        rows += struct.pack(order + "HHI", tag, kind, count) + struct.pack(order + ("Hxx" if is_short else "I"), value)
    head = (b"II*\x00" if order == "<" else b"MM\x00*") + struct.pack(order + "I", 8 + len(pixels) + len(tail))
    return head + pixels + tail + struct.pack(order + "H", len(rows) // 12) + rows + bytes(4)


def directory(*entries):
    return struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)


AFTER_PIXELS = 8 + 784
POINTERS = {
    "to nothing": tiff((GPS, 4, 1, 0)),
    "to nothing, big-endian": tiff((EXIF, 4, 1, 0), order=">"),
    "to the pixels": tiff((EXIF, 4, 1, 100)),
    "outside of the file": tiff((EXIF, 4, 1, 10**9)),
    "of another type": tiff((EXIF, 3, 1, 8)),
    "of no value": tiff((GPS, 4, 0, 8)),
    "to a field of an unknown type": tiff((EXIF, 4, 1, AFTER_PIXELS), tail=directory((40_000, 99, 1000, 8))),
    "to 60,000 fields": tiff((EXIF, 4, 1, AFTER_PIXELS), tail=struct.pack("<H", 60_000) + bytes(720_000)),
    "to fractions": tiff((EXIF, 4, 1, AFTER_PIXELS), tail=directory((40_000, 5, 100_000, 8)) + bytes(800_000)),
    "of both kinds": tiff((EXIF, 4, 1, 8), (GPS, 4, 1, 8), (INTEROPERABILITY, 4, 1, 8)),
}


@pytest.mark.parametrize("file", POINTERS.values(), ids=POINTERS)
def test_other_directories_are_not_read(file, monkeypatch):
    """Scanners and editors leave pointers that lead nowhere; the picture is there all the same."""
    monkeypatch.setattr(Image.Exif, "get_ifd", lambda exif, tag: pytest.fail(f"directory {tag} is read"))
    assert np.array_equal(decode_image(file, preprocess="none").image, decode_image(tiff(), preprocess="none").image)


def test_the_orientation_is_applied_without_them():
    """It is a field of the first directory. Compressed files are read by another library."""
    turned = tiff((274, 3, 1, 6), (EXIF, 4, 1, 100))
    assert np.array_equal(decode_image(turned, preprocess="none").image, np.rot90(PIXELS, -1))
    exif = Image.Exif()
    exif[274] = 6
    packed = encoded(Image.fromarray(PIXELS), "TIFF", compression="tiff_lzw", exif=exif)
    planes = struct.pack("<HHII", 284, 3, 1, 1)  # the last field: all colours of a pixel stand together
    assert planes in packed
    packed = packed.replace(planes, struct.pack("<HHII", EXIF, 4, 1, 100))
    assert without_directories(packed) != packed
    assert np.array_equal(decode_image(packed, preprocess="none").image, np.rot90(PIXELS, -1))


def test_long_fields_that_the_format_allows_are_accepted():
    """The transfer function of 16-bit colours, and times of each plane of a microscope."""
    for tag, kind, count, size in ((301, 3, 3 * 2**16, 2), (33629, 5, 300, 8)):
        decode_image(tiff((tag, kind, count, AFTER_PIXELS), tail=bytes(count * size)))


def test_a_directory_at_the_end_is_expected_to_be_large():
    """Most programs write it there. From the beginning of the file alone, nothing is known of its pixels."""
    noise = np.random.RandomState(1).randint(0, 256, (1000, 1000)).astype(np.uint8)
    file = encoded(Image.fromarray(noise), "TIFF", compression="tiff_lzw")
    assert len(file) > HEAD_BYTES and read_tiff_page(file[:HEAD_BYTES], len(file)) is None
    assert decoding_seconds(file[:HEAD_BYTES], MOST, len(file)) > 0.5 > 0.1 > decoding_seconds(file, MOST)


@pytest.mark.parametrize("kind", [6, 8, 11])
def test_strips_cannot_be_hidden_behind_another_type(kind):
    """libtiff and Pillow would read a compression of 1 from types whose bytes are another number here."""
    file = tiff((259, kind, 1, 0x90001))
    with pytest.raises(UndecodableImage, match="another type than the format allows"):
        decoding_seconds(file, MOST)


def test_wide_greys_of_other_layouts_are_shown_as_they_are():
    """Unsigned 32 bits up to the largest number, and 16 bits in which 0 is white."""
    wide = tiff(pixels=(PIXELS.astype("<u4") * 0x01010101).tobytes(), t258=(3, 32))
    assert np.abs(decode_image(wide, preprocess="none").image.astype(int) - PIXELS).max() <= 1
    negative = tiff(pixels=(PIXELS.astype("<u2") * 257).tobytes(), t258=(3, 16), t262=(3, 0))
    assert np.array_equal(decode_image(negative, preprocess="none").image, 255 - PIXELS)


def test_layouts_that_pillow_reads_wrongly_are_not_accepted():
    """Swapped bytes of a compressed file, and a part of each colour of one with separate colours."""
    floats = encoded(Image.fromarray(PIXELS.astype(np.float32)), "TIFF", compression="tiff_lzw")
    assert floats[:2] == b"II" and np.abs(decode_image(floats, preprocess="none").image.astype(int) - PIXELS).max() <= 1
    page = read_tiff_page(floats, len(floats))
    with pytest.raises(UnsupportedImage, match="8 bits"):
        check_layout(page._replace(is_big_endian=True), "F")
    colours = np.repeat(PIXELS.astype("<u2")[None] * 257, 3, axis=0).tobytes()
    fields = {"t258": (3, 16), "t262": (3, 2), "t277": (3, 3), "t284": (3, 2)}
    lengths = struct.pack("<6I", *(8 + 1568 * index for index in range(3)), *[1568] * 3)
    at = 8 + len(colours)
    planar = bytearray(tiff(pixels=colours, tail=lengths + struct.pack("<3H", 16, 16, 16), **fields))
    for tag, count, value in ((258, 3, at + 24), (273, 3, at), (279, 3, at + 12)):
        position = planar.index(struct.pack("<H", tag), at)
        struct.pack_into("<II", planar, position + 4, count, value)
    with pytest.raises(UnsupportedImage, match="8 bits"):
        decode_image(bytes(planar))


def test_a_kind_that_is_not_read_is_not_only_called_damaged():
    """Pillow knows no half-precision numbers."""
    with pytest.raises(UndecodableImage, match="of a kind that is not read; save it with 8 bits"):
        decode_image(tiff(pixels=PIXELS.astype("<f2").tobytes(), t258=(3, 16), t339=(3, 3)))
