"""Bytes of all kinds -> pixels or an ImageError, and nothing else."""

import io
import itertools
import struct
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from strokes import stroke_images

from app.detection.imaging.decode import (
    decode_image,
    decode_scanlines,
    decodes_quickly,
    encode_png,
    plain_scanlines,
)
from app.detection.imaging.decoding_cost import decoding_seconds
from app.detection.imaging.errors import DecodingTooLong, ImageError, ImageTooLarge, UndecodableImage, UnsupportedImage
from app.detection.imaging.file_headers import gif_header_length, strip_jpeg
from app.detection.imaging.tiff import read_tiff_page

FORMATS = ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"]
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def seven(size: int = 28) -> np.ndarray:
    """Something like a 7, bright on dark, uint8 [size, size]."""
    image = np.zeros((28, 28), np.uint8)
    image[5:8, 10:22] = 250
    for row in range(8, 23):
        image[row, 21 - row // 2 : 24 - row // 2] = 255 - row
    image = np.roll(image, (3, -1), (0, 1))
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def saved(image: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
    return out.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *extra: bytes, body: bytes | None = None) -> bytes:
    """A grey PNG by hand, with chunks of one's own before the picture."""
    rows = zlib.compress(b"\x00" * (width + 1) * height) if body is None else body
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return PNG_SIGNATURE + header + b"".join(extra) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def npy(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version=version)
    return out.getvalue()


# -------------------------------------------------------------------------------------------------- what comes through


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *itertools.product(("PNG", "TIFF"), ("L", "RGB", "RGBA", "LA")),
        *itertools.product(("BMP",), ("L", "RGB", "RGBA")),
        *itertools.product(("GIF",), ("L", "RGB")),
    ],
)
def test_grey_of_the_models_size_stays_as_it_is(kind, mode):
    """`auto` leaves a 28x28 grey picture alone to the last bit, whatever lossless type and mode carry it."""
    prepared = decode_image(saved(Image.fromarray(seven()).convert(mode), kind))
    assert np.array_equal(prepared.image, seven())
    assert prepared.features is None


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("preprocess", ["auto", "none", "digit"])
@pytest.mark.parametrize("shape", [(28, 28), (1, 1), (300, 200), (3, 500)])
def test_every_type_becomes_an_image_of_the_models_size(kind, preprocess, shape):
    """Any accepted type and size comes out as uint8 [28, 28]."""
    image = np.full((*shape, 3), 240, np.uint8)
    image[shape[0] // 3 : shape[0] // 2] = (10, 40, 160)
    prepared = decode_image(saved(image, kind), preprocess=preprocess)
    assert prepared.image.shape == (28, 28)
    assert prepared.image.dtype == np.uint8


@pytest.mark.parametrize("size", [20, 28, 32])
def test_the_models_size_is_a_parameter(size):
    """Models of other image sizes are served the same way."""
    assert decode_image(saved(seven(90)), size=size).image.shape == (size, size)
    assert np.array_equal(decode_image(saved(seven(size)), size=size).image, seven(size))


@pytest.mark.parametrize(("width", "height"), [(280, 280), (280, 140), (84, 168), (1000, 1), (14, 14), (3, 7)])
def test_none_keeps_the_aspect_and_fills_with_the_border(width, height):
    """The longest side becomes the model's; enlarging by whole pixels is undone exactly; the rest has the grey around."""
    small = stroke_images(1, seed=4)[0]
    shown = np.asarray(Image.fromarray(255 - small).resize((width, height), Image.Resampling.NEAREST))
    decoded = decode_image(saved(Image.fromarray(shown)), preprocess="none")
    assert (decoded.image.shape, decoded.preprocess, decoded.features) == ((28, 28), ("resized",), None)
    if width == height == 280:
        assert np.array_equal(decoded.image, 255 - small)
    assert set(decoded.image[[0, 0, -1, -1], [0, -1, 0, -1]].tolist()) == {255}


def test_the_short_way_and_the_long_way_agree():
    """The quick reader of plain PNGs gives what Pillow gives, for every PNG filter and compression."""
    rng = np.random.default_rng(0)
    for level in range(10):
        image = (seven() * rng.uniform(0.5, 1, (28, 28))).astype(np.uint8)
        assert np.array_equal(decode_image(saved(image, compress_level=level)).image, image)


def filtered(image: np.ndarray, filters: list[int]) -> bytes:
    """The scanlines of a grey image, each with its own filter (PNG specification, section 9)."""
    height, width = image.shape
    padded = np.zeros((height + 1, width + 1), int)
    padded[1:, 1:] = image
    lines = b""
    for row, kind in enumerate(filters):
        left, up, corner = padded[row + 1, :-1], padded[row, 1:], padded[row, :-1]
        estimate = left + up - corner
        distances = np.abs(np.stack([estimate - left, estimate - up, estimate - corner]))
        nearest = np.choose(distances.argmin(axis=0), [left, up, corner])
        predicted = [0 * left, left, up, (left + up) // 2, nearest][kind]
        lines += bytes([kind]) + ((image[row] - predicted) % 256).astype(np.uint8).tobytes()
    return lines


def test_plain_pngs_are_decoded_together_as_each_alone():
    """Whatever filters they have: the first line of each is filtered as if nothing were above it."""
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (6, 28, 28)).astype(np.uint8)
    lines = [filtered(image, rng.integers(0, 5, 28).tolist()) for image in images[:5]] + [filtered(images[5], [4] * 28)]
    files = [png(28, 28, body=zlib.compress(each)) for each in lines]
    assert [plain_scanlines(file) for file in files] == lines
    assert np.array_equal(decode_scanlines(lines), images)
    for file, image in zip(files, images, strict=True):
        assert np.array_equal(decode_image(file, preprocess="none").image, image)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))), image)


@pytest.mark.parametrize(
    "body",
    [
        zlib.compress(bytes(28 * 29))[:-4],
        zlib.compress(bytes(28 * 29))[:-1] + b"x",
        zlib.compress(bytes(28 * 29 - 1)),
        zlib.compress(bytes(28 * 29 + 1)),
        zlib.compress(b"\x05" + bytes(28 * 29 - 1)),
        b"no zlib at all",
    ],
    ids=["no checksum", "wrong checksum", "too short", "too long", "unknown filter", "not compressed"],
)
def test_a_damaged_png_is_not_plain(body):
    """It is left to Pillow, which reads it or says what is wrong."""
    assert plain_scanlines(png(28, 28, body=body)) is None


def test_a_large_file_is_not_plain():
    """Its checksum would hold up the event loop."""
    rows = zlib.compress(bytes(28 * 29))
    assert plain_scanlines(png(28, 28, body=rows)) is not None
    assert plain_scanlines(png(28, 28, body=rows + bytes(2**20))) is None


def test_transparency_is_shown_on_white():
    """Black ink on nothing is black ink on white."""
    ink = seven(28)
    layers = np.zeros((28, 28, 4), np.uint8)
    layers[..., 3] = ink
    assert np.array_equal(decode_image(saved(layers)).image, 255 - ink)


@pytest.mark.parametrize("size", [60, 900])
def test_white_ink_on_a_transparent_page_is_shown_on_black(size):
    """A drawing app's white strokes would be lost on white."""
    alpha = seven(size)
    picture = np.concatenate([np.full((size, size, 3), 255, np.uint8), alpha[..., None]], axis=2)
    prepared = decode_image(saved(Image.fromarray(picture)))
    assert "composited_on_black" in prepared.preprocess
    assert np.abs(prepared.image.astype(int) - decode_image(saved(255 - alpha)).image).mean() < 8


def test_large_transparent_pictures_keep_their_ink():
    """Shrinking before compositing does not grey the edges with hidden colours."""
    layers = np.zeros((900, 900, 4), np.uint8)
    layers[..., :3] = (255, 0, 255)
    layers[300:600, 400:480] = (0, 0, 0, 255)
    prepared = decode_image(saved(layers), preprocess="none")
    assert prepared.image.max() == 255
    assert "composited_on_white" in prepared.preprocess


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_wide_greys_are_scaled_as_a_viewer_does(dtype):
    """16 bits, 32 bits and floats arrive as the 8 bits that a viewer would show."""
    ink = seven()
    wide = (ink.astype(np.float64) * (1 / 255 if dtype == np.float32 else 257)).astype(dtype)
    kind = "PNG" if dtype == np.uint16 else "TIFF"
    assert np.abs(decode_image(saved(wide, kind)).image.astype(int) - ink).max() <= 1


def test_one_bit_and_palette_pictures_are_read():
    """Pictures of two colours, by bit or by palette, show their colours."""
    ink = Image.fromarray((seven() > 128).astype(np.uint8) * 255)
    for mode in ("1", "P"):
        assert np.array_equal(decode_image(saved(ink.convert(mode))).image, np.asarray(ink))


def test_exif_orientation_is_applied():
    """A photograph held sideways is turned upright, from JPEG, PNG and WebP alike."""
    upright = Image.fromarray(seven(56))
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind, options in (("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        file = saved(upright.transpose(Image.Transpose.ROTATE_90), kind, exif=exif, **options)
        turned = decode_image(file, preprocess="none").image.astype(int)
        assert np.abs(turned - decode_image(saved(upright), preprocess="none").image).mean() < 2.5


def exif_entries(*entries: tuple[int, int, int, int], tail: bytes = b"") -> bytes:
    """EXIF data with these entries: tag, type, count, value."""
    rows = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"Exif\x00\x00II*\x00\x08\x00\x00\x00" + struct.pack("<H", len(entries)) + rows + bytes(4) + tail


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\x00\x00",
        b"no directory",
        exif_entries((0x0112, 3, 1, 6))[:20],
        exif_entries((0x0112, 3, 1, 77)),
        exif_entries((0x0112, 2, 4, 0x41414141)),
        exif_entries((0x0112, 5, 1, 0)),
        exif_entries(*((1000 + i, 7, 60_000, 8) for i in range(60_000)), tail=bytes(60_000)),
    ],
    ids=["empty", "no signature", "truncated", "value 77", "text", "division by zero", "60,000 entries"],
)
def test_a_damaged_orientation_is_ignored(exif):
    """EXIF data without a readable orientation leave the image as it is, and raise no error."""
    assert decode_image(png(28, 28, chunk(b"eXIf", exif.removeprefix(b"Exif\x00\x00")))).preprocess == ()


def test_the_first_frame_stands_for_an_animation():
    """Of an animated GIF, WebP or PNG and of a TIFF of several pages, the first picture counts."""
    frames = [Image.fromarray(seven()), Image.new("L", (28, 28), 255)]
    for kind in ("GIF", "TIFF", "PNG"):
        file = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        assert np.array_equal(decode_image(file).image, seven())


COMMENTS = b"!\xfe" + (b"\xff" + b"x" * 255) * 16_000 + b"\x00"  # 4 MiB


@pytest.mark.parametrize(
    "junk", [COMMENTS, COMMENTS * 2, b"x" + COMMENTS, b"\x00" * 1000, b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"]
)
@pytest.mark.parametrize("place", ["before the control extension", "after it"])
def test_what_precedes_a_gifs_picture_is_not_gathered(junk, place):
    """Comments, other extensions and stray bytes cost no memory; colours and transparency stay."""
    image = Image.fromarray(np.where(seven(60) > 99, 1, 0).astype(np.uint8), "P")
    image.putpalette([255, 255, 255, 0, 0, 0])
    file = saved(image, "GIF", transparency=0)
    position = file.index(b"!\xf9") + (0 if place.startswith("before") else 8)
    padded = file[:position] + junk + file[position:]
    tracemalloc.start()
    found = decode_image(padded)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(found.image, decode_image(file).image) and found.preprocess == decode_image(file).preprocess
    assert peak < 2**20


def test_cmyk_is_read():
    """Print colours are shown as colours: white paper is white."""
    file = saved(Image.new("RGB", (28, 28), "white").convert("CMYK"), "JPEG", quality=100)
    assert decode_image(file).image.min() > 248


def test_transparent_16_bit_grey_is_read_as_8_bit_grey_is():
    """A white digit on a transparent black is not lost on white paper."""
    digit = np.where(seven(100) > 99, 255, 0).astype(np.uint8)
    few = saved(Image.fromarray(digit), "PNG", transparency=0)
    many = saved(Image.fromarray(digit.astype(np.uint16) * 257), "PNG", transparency=0)
    assert Image.open(io.BytesIO(many)).mode.startswith("I")
    found, expected = decode_image(many), decode_image(few)
    assert found.preprocess == expected.preprocess and found.preprocess[0] == "composited_on_black"
    assert np.array_equal(found.image, expected.image)


def test_an_integer_mask_of_zeros_and_ones_is_black_and_white():
    """As a floating-point one is."""
    mask = np.where(seven(100) > 99, 1, 0)
    found, expected = (decode_image(saved(Image.fromarray(mask.astype(kind)), "TIFF")) for kind in (np.int32, np.float32))
    assert "blank" not in found.preprocess and np.array_equal(found.image, expected.image)


def test_12_bit_grey_is_scaled_by_its_range():
    """White is 4,095."""
    tall = np.repeat(np.arange(28, dtype=np.uint16)[:, None] * 151, 28, axis=1)  # 0 to 4,077
    packed = np.packbits(np.unpackbits(tall.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)[:, 4:].reshape(-1)).tobytes()
    entries = [(256, 28), (257, 28), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 28), (279, len(packed))]
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, 3 if tag in (258, 259, 262, 277) else 4, 1, value) for tag, value in entries
    )
    file = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + directory + bytes(4)
    found = decode_image(file, preprocess="none").image
    assert found[0].max() == 0 and found[-1].min() > 250


# -------------------------------------------------------------------------------------------------- what does not


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
def test_truncated_files_are_refused(kind, share):
    """Half a file is no picture."""
    noisy = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    file = saved(noisy, kind)
    with pytest.raises(UndecodableImage, match=r"truncated|damaged"):
        decode_image(file[: int(len(file) * share)])


def test_a_png_without_its_end_is_refused():
    """Even where all the pixels are there, a cut file says so."""
    with pytest.raises(UndecodableImage, match="truncated PNG"):
        decode_image(saved(seven(40))[:-5])


def tiff(*entries, tail=b""):
    """A directory of (tag, type, count, value), and what follows it."""
    rows = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\x00\x08\x00\x00\x00" + struct.pack("<H", len(entries)) + rows + bytes(4) + tail


def header(width, height, depth=8, colour=0):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def gif_of_a_larger_picture():
    """A screen of one pixel, and a picture of 3000 x 3000."""
    file = saved(Image.new("P", (3000, 3000)), "GIF")
    return file[:6] + b"\x01\x00\x01\x00" + file[10:]


def gif_with(extensions):
    """A good picture with these extensions before it."""
    file = saved(seven(28), "GIF")
    start = gif_header_length(file)
    return file[:start] + extensions + file[start:]


def tiff_with_two_tile_sizes():
    """Libraries differ in which of two equal fields they read: here 16 and 8,000 pixels."""
    sizes = ((322, 4, 1, 8_000), (322, 4, 1, 16), (323, 4, 1, 8_000), (323, 4, 1, 16))
    rest = ((258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1))
    return tiff(
        (256, 4, 1, 16), (257, 4, 1, 16), *rest, *sizes, (324, 4, 1, 200), (325, 4, 1, 40), tail=zlib.compress(bytes(256))
    )


PLAIN_TIFF = ((256, 4, 1, 28), (257, 4, 1, 28), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 784))


def run_length_bmp(width, height, packed, method=1):
    """A bitmap that says how often each of its two colours comes."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8 if method == 1 else 4, method, len(packed), 0, 0, 2, 0)
    return b"BM" + struct.pack("<IHHI", 62 + len(packed), 0, 0, 62) + header + b"\x00" * 4 + b"\xff\xff\xff\x00" + packed


HOSTILE = {
    "empty": b"",
    "text": b"hello, I am an image",
    "signature alone": PNG_SIGNATURE,
    "no picture": PNG_SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 28, 28, 8, 0, 0, 0, 0)) + chunk(b"IEND", b""),
    "no width": png(0, 28),
    "no height": png(28, 0),
    "garbage inside": png(28, 28, body=b"\x00" * 40),
    "too few rows": png(28, 28, body=zlib.compress(b"\x00" * 29 * 20)),
    "wrong checksum": saved(seven())[:45] + b"\x00" + saved(seven())[46:],
    "odd bit depth": PNG_SIGNATURE
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 28, 28, 7, 9, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(b"\x00" * 900))
    + chunk(b"IEND", b""),
    "text bomb": png(28, 28, chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(b"x" * 50_000_000, 9))),
    "utf text bomb": png(28, 28, chunk(b"iTXt", b"Comment\x00\x01\x00\x00\x00" + zlib.compress(b"x" * 50_000_000, 9))),
    "profile bomb": png(28, 28, chunk(b"iCCP", b"icc\x00\x00" + zlib.compress(b"x" * 50_000_000, 9))),
    "many small bombs": png(28, 28, *[chunk(b"zTXt", b"C\x00\x00" + zlib.compress(b"x" * 900_000, 9))] * 20),
    "jpeg of segments": b"\xff\xd8" + b"\xff\xfe\x00\x02" * 100_000,
    "jpeg of padding": b"\xff\xd8" + b"\xff" * 1_000_000,
    "jpeg of scans": saved(seven(64), "JPEG")[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 500 + b"\xff\xd9",
    "jpeg of segments after its frame": saved(seven(64), "JPEG").replace(
        b"\xff\xda", b"\xff\xe5\x00\x02" * 5000 + b"\xff\xda", 1
    ),
    "tiff of a hundred thousand strips": tiff(
        (256, 4, 1, 8), (257, 4, 1, 60_000), (273, 4, 10**5, 8), (278, 4, 1, 1), tail=bytes(4 * 10**5)
    ),
    "tiff of the same megabyte again and again": tiff(*((33000 + i, 1, 10**6, 8) for i in range(1000)), tail=bytes(10**6)),
    "tiff of thousands of fields": tiff(*((60_000 + i, 4, 1, i) for i in range(5_000))),
    "tiff with two tile sizes": tiff_with_two_tile_sizes(),
    "png with a second, larger header": png(28, 28, header(3000, 3000, 16)),
    "png with a header behind a shorter one": PNG_SIGNATURE
    + chunk(b"eXIf", struct.pack(">IIBBBBB", 28, 28, 8, 0, 0, 0, 0))
    + png(300, 300)[8:],
    "png of chunks": png(28, 28, *[chunk(b"IDAT", b"")] * 30_000),
    "gif of a larger picture": gif_of_a_larger_picture(),
    "png of empty blocks": png(
        28, 100, body=b"\x78\x01" + b"\x00\x00\x00\xff\xff" * 9_000 + zlib.compress(bytes(29 * 100))[2:]
    ),
    "tiff with a width of 64 bits": tiff((256, 16, 1, 8), (257, 4, 1, 28), (273, 4, 1, 8), (279, 4, 1, 28), tail=bytes(99)),
    "gif of extensions": gif_with(b"!\xf9\x00" * 3000),
    "tiff of fractions": tiff(*PLAIN_TIFF, (282, 5, 100_000, 8), tail=bytes(800_000)),
    "tiff of overlapping fields": tiff(*PLAIN_TIFF, *((40_000 + i, 1, 20_000, 8) for i in range(20)), tail=bytes(20_000)),
    "gif of one-byte comments": gif_with(b"!\xfe" + b"\x01A" * 100_000 + b"\x00"),
    "png of empty texts": png(28, 28, chunk(b"zTXt", b"C\x00\x00" + b"\x78\x01" + b"\x00\x00\x00\xff\xff" * 300_000)),
    "webp of nothing": b"RIFF\x04\x00\x00\x00WEBP",
    "gif of nothing": b"GIF89a\x1c\x00\x1c\x00\x00\x00\x00",
    "tiff in circles": b"II*\x00\x08\x00\x00\x00\x00\x00\x08\x00\x00\x00",
    "bmp of nothing": b"BM" + b"\x00" * 60,
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("preprocess", ["auto", "none", "digit"])
def test_hostile_files_are_refused_in_words(data, preprocess):
    """Each is an UndecodableImage whose sentence shows neither a path nor a Python object."""
    with pytest.raises(UndecodableImage) as refused:
        decode_image(data, preprocess=preprocess)
    assert str(refused.value)
    assert not any(sign in str(refused.value) for sign in ("<", "0x", "/", "Error", "b'"))


def jpeg_with_a_false_end(scans=150):
    """A comment that looks like the end of the file, and then the last scan again and again."""
    whole = saved(seven(3000), "JPEG", progressive=True)
    first, last = whole.index(b"\xff\xda"), whole.rindex(b"\xff\xda")
    second = whole.index(b"\xff\xc4", first)
    return whole[:second] + b"\xff\xfe\x00\x06\xff\xd9\x00\x00" + whole[second:-2] + whole[last:-2] * scans + b"\xff\xd9"


@pytest.mark.parametrize(
    "data",
    [
        jpeg_with_a_false_end(),
        tiff(
            *((256, 4, 1, 1), (257, 4, 1, 28), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 10**6, 8), (278, 4, 1, 1)),
            *((279, 4, 10**6, 8),),
            tail=bytes(4 * 10**6),
        ),
    ],
    ids=["scans behind a false end", "strips that Pillow reads one by one"],
)
def test_what_takes_far_longer_than_any_image_is_not_begun(data):
    """The command line has no limit on CPU time."""
    with pytest.raises(DecodingTooLong, match="would take too long"):
        decode_image(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda jpeg, at: jpeg[:at] + b"\xff" * 1000 + jpeg[at:],
        lambda jpeg, at: jpeg[:at] + b"noise" + jpeg[at:],
        lambda jpeg, at: jpeg[:at] + b"\xff\xfe\x00\x04no" * 300 + jpeg[at:],
        lambda jpeg, at: jpeg + np.random.RandomState(0).bytes(8 << 20),
    ],
    ids=["padding", "noise between segments", "many segments", "a video behind"],
)
@pytest.mark.parametrize("progressive", [False, True])
def test_what_decoders_skip_in_a_jpeg_is_skipped(change, progressive):
    """Phones pad segments and append videos; the picture is the same."""
    whole = saved(seven(64), "JPEG", progressive=progressive)
    odd = change(whole, whole.index(b"\xff\xdb"))
    assert np.array_equal(decode_image(odd).image, decode_image(whole).image)


@pytest.mark.parametrize("progressive", [False, True])
def test_pillow_reads_only_the_picture_of_a_jpeg(progressive):
    """Padding, comments and application data are removed before its scans; colours, orientation and the scans stay."""
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = saved(seven(64), "JPEG", progressive=progressive, exif=exif)
    at = whole.index(b"\xff\xdb")
    resources = b"\xff\xed\x00\x1aPhotoshop 3.0\x008BIM" + bytes(6)
    padded = whole[:at] + b"\xff" * 9_000 + resources * 100 + b"\xff\xfe\x00\x04no" + whole[2:at] + whole[at:]
    assert strip_jpeg(padded) == strip_jpeg(whole) == whole
    assert np.array_equal(decode_image(padded).image, decode_image(whole).image)


def test_the_preview_of_a_photograph_is_no_scan_of_it():
    """A camera's JPEG holds a small JPEG in its EXIF data; only scans of the picture itself take time."""
    photo, preview = saved(seven(2000), "JPEG"), saved(seven(64), "JPEG", progressive=True)
    exif = b"Exif\x00\x00" + preview
    with_preview = photo[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + photo[2:]
    assert decoding_seconds(with_preview, 25_000_000) == pytest.approx(decoding_seconds(photo, 25_000_000), rel=0.01)
    assert decoding_seconds(saved(seven(2000), "JPEG", progressive=True), 25_000_000) > 0.03


@pytest.mark.parametrize("method", [1, 2])
def test_a_bitmap_has_no_more_run_lengths_than_pixels(method):
    """Each two bytes of them are a step in Python, whether they hold pixels or not."""
    with pytest.raises(UndecodableImage, match="more run lengths than pixels"):
        decoding_seconds(run_length_bmp(28, 28, bytes(9_000), method), 25_000_000)
    pairs = b"".join(bytes([1, value % 2]) for value in range(28)) + bytes(2)
    assert decoding_seconds(run_length_bmp(28, 28, pairs * 28, method), 25_000_000) < 0.01


def test_the_size_of_a_bitmap_with_the_oldest_header_is_known():
    """It has 16 bits for each side."""
    core = b"BM" + struct.pack("<IHHIIHHHH", 26, 0, 0, 26, 12, 4000, 4000, 1, 24)
    assert decoding_seconds(core, 25_000_000, len(core)) == pytest.approx(16_000_000 * 10e-9, rel=0.1)


@pytest.mark.parametrize("strip_bytes", [800, 2_000, 1_000_000])
def test_a_compressed_page_is_expected_to_take_as_long_as_its_pixels(strip_bytes):
    """Programs write the lengths of small strips as 16-bit numbers."""
    page = saved(Image.fromarray(seven(1000)), "TIFF", compression="tiff_lzw", strip_size=strip_bytes)
    assert decoding_seconds(page, 25_000_000) == pytest.approx(0.027, rel=0.2)
    assert decode_image(page).image.shape == (28, 28)


def test_arithmetic_coding_is_not_accepted():
    """A JPEG of 111 bytes took 60 ms."""
    coded = saved(seven(64), "JPEG").replace(b"\xff\xc0", b"\xff\xc9", 1)
    with pytest.raises(UnsupportedImage, match="Huffman"):
        decode_image(coded)


def test_a_tiff_of_wide_pixels_has_fewer_of_them():
    """Four samples of 16 bits take eight bytes, in one strip 200 MB."""
    fields = ((258, 3, 4, 200), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, 4), (279, 4, 1, 8))
    wide = tiff((256, 4, 1, 5000), (257, 4, 1, 5000), *fields, tail=bytes(20) + struct.pack("<H", 16) * 200)
    with pytest.raises(ImageTooLarge, match="strip or tile"):
        decode_image(wide)


def test_pictures_behind_a_progressive_one_are_no_scans_of_it():
    """A phone appends gain maps and videos."""
    photo = saved(seven(2000), "JPEG", progressive=True)
    alone = decoding_seconds(photo, 25_000_000)
    assert decoding_seconds(photo + 3 * saved(seven(64), "JPEG", progressive=True), 25_000_000) == pytest.approx(
        alone, rel=0.02
    )


def test_a_bitmap_whose_alpha_is_zero_everywhere_is_opaque():
    """Windows programs leave the channel unused, and say in a V5 header that it is there."""
    blue, green, red = (np.full((28, 28), value, np.uint8) for value in (10, 20, 30))
    header = struct.pack("<IiiHHIIiiII", 124, 28, -28, 1, 32, 3, 28 * 28 * 4, 0, 0, 0, 0)
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    start = b"BM" + struct.pack("<IHHI", 138 + 28 * 28 * 4, 0, 0, 138) + (header + masks).ljust(124, b"\x00")
    pixels = np.stack([blue, green, red, np.zeros_like(red)], -1)
    assert set(np.unique(decode_image(start + pixels.tobytes(), preprocess="none").image)) <= set(range(18, 26))


@pytest.mark.parametrize("preprocess", ["none", "digit"])
@pytest.mark.parametrize("ink", [0, 255])
def test_a_first_frame_that_is_smaller_than_its_canvas_is_the_picture(ink, preprocess):
    """Pillow would show black around it, and viewers what is behind."""
    frame = saved(Image.fromarray(seven(28) if ink else 255 - seven(28)), "GIF")
    start = gif_header_length(frame)
    corner = b"," + struct.pack("<HHHH", 0, 0, 28, 28)
    moved = frame[start:].replace(corner, b"," + struct.pack("<HHHH", 20, 20, 28, 28), 1)
    larger = frame[:6] + struct.pack("<HH", 60, 60) + frame[10:start] + moved
    shown, alone = (decode_image(each, preprocess=preprocess).image for each in (larger, frame))
    assert np.array_equal(shown, alone)


def test_a_side_has_a_largest_length():
    """Libraries keep an address for each row: 25 million of them take 200 MB and seconds."""
    with pytest.raises(ImageTooLarge, match="65,535 on a side"):
        decode_image(png(1, 70_000))


def test_a_large_tiff_with_two_samples_is_read():
    """The field itself holds the two bit depths; they are not an offset."""
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 2), dtype=np.uint8)
    file = saved(Image.fromarray(noise, "LA"), "TIFF")
    assert len(file) > 0x80008
    assert read_tiff_page(file, len(file)).pixel_bytes == 2
    assert decode_image(file).image.shape == (28, 28)


def test_a_tile_is_no_larger_than_the_largest_image():
    """It is held in memory as a whole."""
    large = tiff((256, 4, 1, 16), (257, 4, 1, 16), (322, 4, 1, 9_000), (323, 4, 1, 9_000), (324, 4, 1, 8), (325, 4, 1, 8))
    with pytest.raises(ImageTooLarge, match="25,000,000"):
        decode_image(large)


@pytest.mark.parametrize("method", [1, 2])
def test_the_cost_of_run_lengths_follows_their_bytes(method):
    """Each two are a step in Python; one of a few bytes may skip many pixels."""
    long, short = (run_length_bmp(1000, 1000, b"\x01\x01" * count, method) for count in (1_000_000, 1_000))
    assert decoding_seconds(long, 25_000_000) > 1 > 0.02 > decoding_seconds(short, 25_000_000)
    assert decode_image(run_length_bmp(28, 1, b"\x1c\x01\x00\x01", method)).image.shape == (28, 28)


@pytest.mark.parametrize(
    ("quick", "data"),
    [
        ("auto none", saved(seven())),
        ("auto none", saved(Image.fromarray(seven()).convert("LA"))),
        ("auto none", saved(Image.fromarray(seven().astype(np.uint16) * 257))),
        ("none", saved(Image.fromarray(seven()).convert("RGB"))),
        ("none", saved(Image.fromarray(seven()).convert("P"))),
        ("none", saved(seven(20))),
        ("none", png(100, 100, body=b"")),
        ("", saved(seven(64), "JPEG")),
        ("", saved(seven(200))),
        ("", saved(seven(200), "JPEG", quality=5)),
        ("", png(1000, 1000, body=b"")),
        ("", saved(seven(), "WEBP")),
        ("", saved(seven(), "BMP")),
        ("", saved(seven(), "GIF")),
        ("", saved(seven(), "TIFF")),
        ("", saved(seven()) + bytes(2048)),
        ("", HOSTILE["png with a header behind a shorter one"]),
        ("", b"x"),
    ],
)
def test_what_is_quick_to_decode_is_small_by_its_header_and_is_not_prepared(quick, data):
    """Few bytes alone say nothing; only types whose header bounds the work are quick, and preparing any image takes long."""
    assert [preprocess for preprocess in ("auto", "none", "digit") if decodes_quickly(data, preprocess, 28)] == quick.split()
    if quick.startswith("auto"):
        assert decode_image(data).features is None


@pytest.mark.parametrize("name", ["text bomb", "utf text bomb", "profile bomb", "many small bombs"])
def test_bombs_do_not_unpack(name):
    """A text that unpacks to megabytes costs no more than one of them."""
    tracemalloc.start()
    with pytest.raises(UndecodableImage):
        decode_image(HOSTILE[name])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize(
    "data",
    [
        png(60_000, 60_000, body=b""),
        png(5_001, 5_000, body=b""),
        b"GIF89a\xff\xff\xff\xff\x00\x00\x00",
        b"RIFF\x16\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff",
        b"RIFF\x16\x00\x00\x00WEBPVP8L\x0a\x00\x00\x00\x2f\xff\xff\xff\x0f" + b"\x00" * 5,
        b"RIFF\x16\x00\x00\x00WEBPVP8 \x0a\x00\x00\x00\x00\x00\x00\x9d\x01\x2a\xff\x3f\xff\x3f",
        b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03" + b"\x01\x11\x00" * 3 + b"\xff\xda\x00\x02",
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 1, 1, 0, 0),
    ],
    ids=["png", "png just over", "gif", "webp extended", "webp lossless", "webp lossy", "jpeg", "bmp"],
)
def test_too_many_pixels_are_refused_by_the_header(data):
    """The header's claim is enough, and none of the picture is unpacked or allocated."""
    tracemalloc.start()
    with pytest.raises(ImageTooLarge, match="25,000,000"):
        decode_image(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


def test_the_limit_on_pixels_is_a_parameter():
    """A picture of exactly the limit passes, one more does not."""
    assert decode_image(saved(seven(40)), max_pixels=1600).image.shape == (28, 28)
    with pytest.raises(ImageTooLarge, match=r"40 x 40 pixels; at most 1,599"):
        decode_image(saved(seven(40)), max_pixels=1599)


@pytest.mark.parametrize(
    "data",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\xef\xbb\xbf<?xml version='1.0'?><svg/>",
        b"%PDF-1.7\n",
        b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00",
        b"\x00\x00\x00\x18ftypavif\x00\x00\x00\x00",
        b"8BPS\x00\x01",
        b"\x00\x00\x01\x00\x01\x00",
        b"%!PS-Adobe-3.0 EPSF-3.0",
        npy(np.zeros((2, 28, 28), np.uint8)),
    ],
)
def test_known_types_off_the_list_are_named(data):
    """A type that is recognised and not accepted is refused as such, with what to send instead."""
    with pytest.raises(UnsupportedImage, match="send"):
        decode_image(data)


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_mutated_files_raise_nothing_else(kind, data):
    """Flip, drop and insert bytes: either a picture comes out or an ImageError."""
    file = bytearray(saved(seven(40), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(file) - 1))
        match data.draw(st.sampled_from(["set", "drop", "insert"])):
            case "set":
                file[at] = data.draw(st.integers(0, 255))
            case "drop":
                del file[at : at + data.draw(st.integers(1, 8))]
            case "insert":
                file[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        if not file:
            break
    check(bytes(file), data.draw(st.sampled_from(["auto", "none", "digit"])))


@settings(max_examples=200, deadline=None)
@given(
    head=st.sampled_from([b"", PNG_SIGNATURE, b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\x00", b"MM\x00*", b"RIFF"]),
    tail=st.binary(max_size=400),
)
def test_arbitrary_bytes_raise_nothing_else(head, tail):
    """Any bytes after any signature: a picture or an ImageError."""
    check(head + tail, "auto")


def check(data: bytes, preprocess: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            prepared = decode_image(data, preprocess=preprocess, max_pixels=1_000_000)
        except ImageError as refused:
            assert str(refused)
            return
    assert prepared.image.shape == (28, 28)
    assert prepared.image.dtype == np.uint8


def test_decoding_is_the_same_from_many_threads():
    """Threads that decode different types at once get what one thread gets."""
    files = [saved(seven(size), kind) for kind in FORMATS for size in (28, 40, 90)] * 5
    alone = [decode_image(file).image for file in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda file: decode_image(file).image, files))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


# -------------------------------------------------------------------------------------------------- back to PNG


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_png_round_trips(seed, colour):
    """What is encoded is what a viewer shows."""
    shape = (31, 28, 3) if colour else (31, 28)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(pixels)))), pixels)
