"""Decodes untrusted image files, and encodes PNGs. No other file of the program decodes images.

Input: the bytes of one image file or of one .npy array. Output: uint8 images of the model's size, or an `ImageError` whose
message is a sentence for the client. File type and pixel count are read from the header before anything is decompressed.
Of the metadata only the EXIF orientation is used.
"""

import io
import warnings
import zlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile

from app.detection.imaging.errors import ImageError, ImageTooLarge, TooManyImages, UndecodableImage
from app.detection.imaging.file_headers import check_bmp, check_tiff, declared_size, read_npy_header, sniff, strip_png
from app.detection.imaging.preprocess import WORKING_SIDE, PreprocessedImage, centre_images, preprocess_digit

Preprocess = Literal["auto", "none", "digit"]
Pixels = NDArray[np.uint8]

MAX_PIXELS = 25_000_000


def decode_image(
    data: bytes, *, preprocess: Preprocess = "auto", max_pixels: int = MAX_PIXELS, size: int = 28
) -> PreprocessedImage:
    """Decode one image file to the size that the model reads.

    `data` holds a PNG, JPEG, WebP, BMP, GIF (first frame) or TIFF (first page). The EXIF orientation is applied, transparency
    is composited on white or black, 16 bits are scaled to 8. Then `none` only resizes the image to size x size grey; `digit`
    applies the preprocessing of MNIST; `auto` keeps the grey values of a grey size x size image, which it shifts only if it
    lies off the middle, and treats any other image as `digit`.

    Returns a `PreprocessedImage`: image uint8 [size, size] (0 = background, 255 = ink).
    Raises UndecodableImage, UnsupportedImage or ImageTooLarge, and no other exception for any input.
    """
    if preprocess != "digit" and size == 28 and (plain := _plain_png(data)) is not None:
        return PreprocessedImage(plain) if preprocess == "none" else _centred_grey(plain, ())
    kind = sniff(data)
    try:
        shown, steps = _to_display_mode(_open(data, kind, max_pixels))
        pixels = np.asarray(shown)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"more pixels than the {max_pixels:,} that are accepted") from error
    except Exception as error:  # Pillow raises many types, SyntaxError and MemoryError among them
        raise UndecodableImage(_error_text(kind, error)) from error
    return _to_model_size(pixels, steps, preprocess, size)


def encode_png(pixels: Pixels) -> bytes:
    """Encode uint8 [H, W] (grey) or [H, W, 3] (RGB) as a PNG."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG")
    return out.getvalue()


def decode_array(data: bytes, *, max_images: int = 100_000, size: int = 28) -> Pixels:
    """Decode a .npy file to uint8 [N, size, size]: a read-only view of `data` if its memory order is C, else a copy.

    Accepts uint8 arrays of shape [N, size, size] or [size, size]. Unpickles nothing, and checks the length of the data before
    it allocates memory. Raises UndecodableImage or TooManyImages.
    """
    shape, order, offset = read_npy_header(data)
    count = 1 if len(shape) == 2 else shape[0] if len(shape) == 3 else 0
    if shape[-2:] != (size, size) or len(shape) not in (2, 3):
        raise UndecodableImage(f"the array's shape is not [N, {size}, {size}] or [{size}, {size}]")
    if count == 0:
        raise UndecodableImage("the array holds no images")
    if count > max_images:
        raise TooManyImages(f"{count:,} images in one array; at most {max_images:,} are accepted")
    if len(data) - offset != count * size * size:
        raise UndecodableImage(f"the array's header promises {count:,} images, its data are of another length")
    flat = np.frombuffer(data, np.uint8, offset=offset)
    return np.ascontiguousarray(flat.reshape(shape, order=order).reshape(count, size, size))


def _error_text(kind: str, error: Exception) -> str:
    text = str(error).lower()
    truncated = any(word in text for word in ("truncated", "not enough", "incomplete", "broken data stream"))
    return f"{'truncated' if truncated else 'damaged'} {kind}"


# Pillow warns about odd metadata with text from the file, which would fill the log. The filter is set once for the process,
# because catch_warnings changes state that threads share.
warnings.filterwarnings("ignore", module=r"PIL\.")


def _open(data: bytes, kind: str, max_pixels: int) -> Image.Image:
    """Check the header, check the limits, then load the pixels. The EXIF orientation is not applied yet."""
    declared = declared_size(data, kind)
    if declared is not None:  # before Image.open, which allocates the canvas of a WebP
        _check_size(*declared, max_pixels)
    if kind == "PNG":
        data = strip_png(data)
    elif kind == "BMP":
        check_bmp(data)
    elif kind == "TIFF":
        check_tiff(data)
    image = Image.open(io.BytesIO(data), formats=[kind])
    _check_size(*image.size, max_pixels)
    if kind == "TIFF":
        _check_tiles(image, max_pixels)
    if isinstance(image, ImageFile):
        image.draft(None, (2 * WORKING_SIDE, 2 * WORKING_SIDE))  # decode a large JPEG at a reduced size
    image.load()
    return image


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise UndecodableImage(f"{width} x {height} pixels: there is nothing in this image")
    if width * height > max_pixels:
        raise ImageTooLarge(f"{width:,} x {height:,} pixels; at most {max_pixels:,} are accepted")


def _check_tiles(image: Image.Image, max_pixels: int) -> None:
    """Apply the pixel limit to the tiles of a TIFF: Pillow allocates whole tiles, also for a small image."""
    tags = getattr(image, "tag_v2", {})
    width, height = tags.get(322), tags.get(323)
    if isinstance(width, int) and isinstance(height, int):
        _check_size(width, height, max_pixels)


_QUICK_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_QUICK_BYTES, _QUICK_PIXELS = 2048, 10_000
_PLAIN_HEAD = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x1c\x00\x00\x00\x1c\x08\x00\x00\x00\x00Wf\x80H"
_PLAIN_TAIL = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def decodes_quickly(data: bytes) -> bool:
    """Return whether the image decodes in 1 to 2 ms: a PNG or JPEG of at most 2,048 bytes and 10,000 pixels.

    The header of the other types does not limit the time that decoding takes.
    """
    if len(data) > _QUICK_BYTES or not data.startswith(_QUICK_SIGNATURES):
        return False
    if data.startswith(_PLAIN_HEAD):
        return True
    try:
        width, height = declared_size(data, "PNG" if data.startswith(_QUICK_SIGNATURES[0]) else "JPEG") or (0, 0)
    except ImageError:
        return True  # decoding raises the same error at once
    return width * height <= _QUICK_PIXELS


def _plain_png(data: bytes) -> Pixels | None:
    """Fast path for a grey 8-bit 28x28 PNG with one IDAT chunk: uint8 [28, 28]. Returns None for any other file.

    Takes half the time of `Image.open`, which spends most of it on parsing.
    """
    if data[:33] != _PLAIN_HEAD or data[-12:] != _PLAIN_TAIL or data[37:41] != b"IDAT":
        return None
    end = len(data) - 16
    if int.from_bytes(data[33:37]) != end - 41 or int.from_bytes(data[end : end + 4]) != zlib.crc32(data[37:end]):
        return None
    try:
        if len(zlib.decompressobj().decompress(data[41:end], 28 * 29)) < 28 * 29:
            return None
        image = Image.frombytes("L", (28, 28), data[41:end], "zip", "L", 0)
    except Exception:  # the general path raises the error with its message
        return None
    return np.frombuffer(image.tobytes(), np.uint8).reshape(28, 28)


_MIN_CONTRAST_ON_WHITE = 64  # of 255: below it, ink of a transparent image is composited on black if that shows it better
_MAX_EXIF_BYTES = 65_536  # Pillow reads 5,000 entries in at most 30 ms
_TRANSPOSES = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _to_display_mode(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Convert to L or RGB, reduce a large image, apply the EXIF orientation. Returns the image and the names of the steps."""
    steps: tuple[str, ...] = ()
    transpose = _TRANSPOSES.get(_exif_orientation(image))
    image = _to_8bit(image)
    if image.has_transparency_data or image.mode in ("LA", "PA", "La", "RGBa"):
        image, steps = _composite(image)
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    image = _reduce(image)
    if transpose is not None:
        image, steps = image.transpose(transpose), (*steps, "turned")
    return image, steps


def _exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none or the EXIF data are damaged."""
    exif = Image.Exif()
    with suppress(Exception):  # damaged metadata do not make an image unreadable
        exif.load(image.info.get("exif", b"")[:_MAX_EXIF_BYTES])
        return int(exif.get(ExifTags.Base.Orientation, 1))
    return 1


def _reduce(image: Image.Image) -> Image.Image:
    factor = max(image.size) // (2 * WORKING_SIDE)
    return image.reduce(factor) if factor > 1 else image


def _composite(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Composite an image with transparency on white, or on black where the ink is too light to be seen on white."""
    image = image.convert("RGBA")
    white = _composite_on(image, 255)
    if _contrast(white) < _MIN_CONTRAST_ON_WHITE and _contrast(black := _composite_on(image, 0)) > _contrast(white):
        return black, ("composited_on_black",)
    return white, ("composited_on_white",)


def _contrast(image: Image.Image) -> int:
    """The largest range of values in a channel."""
    return max(high - low for low, high in cast("Sequence[tuple[int, int]]", image.getextrema()))


def _composite_on(image: Image.Image, backdrop: int) -> Image.Image:
    """Composite an RGBA image on grey. A large one is premultiplied and reduced first, which is faster."""
    if max(image.size) > 2 * WORKING_SIDE:
        small = np.asarray(_reduce(image.convert("RGBa"))).astype(np.uint16)
        rest = (255 - small[..., 3:]) * backdrop // 255
        return Image.fromarray(np.minimum(small[..., :3] + rest, 255).astype(np.uint8))
    return Image.alpha_composite(Image.new("RGBA", image.size, (backdrop,) * 3), image).convert("RGB")


def _to_8bit(image: Image.Image) -> Image.Image:
    """Scale grey modes of 16 and 32 bits to mode L; the range of 32-bit integers and floats follows from the largest value."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.nan_to_num(np.asarray(image).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(values.max())
    full_scale = 65535.0 if image.mode.startswith("I;16") else next((f for f in (1.0, 255.0, 65535.0) if largest <= f), largest)
    if image.mode == "I" and largest <= 1:
        full_scale = 255.0
    scaled = np.clip(np.rint(values * (255.0 / full_scale)), 0, 255).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled[values == transparent] = 255
    return Image.fromarray(scaled)


def _to_model_size(pixels: Pixels, steps: tuple[str, ...], preprocess: Preprocess, size: int) -> PreprocessedImage:
    if preprocess == "none":
        return _resized(Image.fromarray(pixels), steps, size)
    grey = _as_grey(pixels) if preprocess == "auto" and pixels.shape[:2] == (size, size) else None
    if grey is None:
        return preprocess_digit(pixels, size=size, steps=steps)
    return _centred_grey(grey, steps)


def _centred_grey(grey: Pixels, steps: tuple[str, ...]) -> PreprocessedImage:
    images, moved = centre_images(grey[None])
    return PreprocessedImage(images[0], (*steps, "centred") if moved[0] else steps)


def _as_grey(pixels: Pixels) -> Pixels | None:
    """Return the grey values [H, W] of an image without colour, else None."""
    if pixels.ndim == 2:
        return pixels
    spread = np.ptp(pixels, axis=2).max()  # in a lossy WebP of a grey image, channels differ by 1
    return pixels[..., 1] if spread <= 2 else None


def _resized(image: Image.Image, steps: tuple[str, ...], size: int) -> PreprocessedImage:
    if image.mode != "L":
        image, steps = image.convert("L"), (*steps, "greyed")
    if image.size != (size, size):
        image, steps = image.resize((size, size), Image.Resampling.BILINEAR), (*steps, "resized")
    return PreprocessedImage(np.asarray(image), steps)
