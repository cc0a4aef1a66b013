"""Converts a decoded image to what a viewer shows: grey or RGB with 8 bits, upright, on a backdrop, of moderate size.

Input: a Pillow image of any mode. Output: a Pillow image of mode L or RGB, and the names of the steps that changed it.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from app.detection.imaging.preprocess import WORKING_SIDE

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


def to_display_mode(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Convert to L or RGB, reduce a large image, apply the EXIF orientation. Returns the image and the names of the steps."""
    steps: tuple[str, ...] = ()
    transpose = _TRANSPOSES.get(_exif_orientation(image))
    image = _without_empty_alpha(_to_8bit(image))
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


def _reduction(image: Image.Image) -> int:
    """The factor by which a large image is reduced before it is prepared."""
    return max(1, max(image.size) // (2 * WORKING_SIDE))


def _reduce(image: Image.Image) -> Image.Image:
    factor = _reduction(image)
    return image.reduce(factor) if factor > 1 else image


_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # fields of a TIFF
_BAND_PIXELS = 1_000_000  # large images are converted in horizontal bands, so that no second copy of all pixels is made


def _bands(image: Image.Image, multiple: int = 1) -> Iterator[Image.Image]:
    """The image in bands of about _BAND_PIXELS; the height of each band but the last is a multiple of `multiple`."""
    width, height = image.size
    rows = max(1, _BAND_PIXELS // (width * multiple)) * multiple
    for top in range(0, height, rows):
        yield image.crop((0, top, width, min(top + rows, height)))


def _composite(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Composite an image with transparency on white, or on black where the ink is too light to be seen on white."""
    factor = _reduction(image)
    bands = (band.convert("RGBA").convert("RGBa") for band in _bands(image, factor))
    pixels = np.concatenate([np.asarray(band.reduce(factor) if factor > 1 else band) for band in bands]).astype(np.uint16)
    white = _composite_on(pixels, 255)
    if _contrast(white) < _MIN_CONTRAST_ON_WHITE and _contrast(black := _composite_on(pixels, 0)) > _contrast(white):
        return black, ("composited_on_black",)
    return white, ("composited_on_white",)


def _contrast(image: Image.Image) -> int:
    """The largest range of values in a channel."""
    return max(high - low for low, high in cast("Sequence[tuple[int, int]]", image.getextrema()))


def _composite_on(pixels: NDArray[np.uint16], backdrop: int) -> Image.Image:
    """Composite premultiplied RGBA pixels [H, W, 4] on grey."""
    rest = (255 - pixels[..., 3:]) * backdrop // 255
    return Image.fromarray(np.minimum(pixels[..., :3] + rest, 255).astype(np.uint8))


def _without_empty_alpha(image: Image.Image) -> Image.Image:
    """A bitmap without its alpha channel, if that is 0 everywhere: Windows programs leave it so, and mean an opaque picture."""
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")
    return image


def _to_8bit(image: Image.Image) -> Image.Image:
    """Scale grey modes of 12, 16 and 32 bits to mode L, or LA where a value means transparent.

    The range of 32-bit integers and floats follows from the largest value.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    is_unsigned = image.mode == "I" and (tags.get(_BITS), tags.get(_SAMPLE_FORMAT, (1,))) == ((32,), (1,))  # Pillow has int32
    is_white_zero = tags.get(_PHOTOMETRIC) == 0  # Pillow inverts such images of 8 bits itself
    if tags.get(_BITS) == (12,):
        full_scale = 4095.0
    else:
        full_scale = 65535.0 if image.mode.startswith("I;16") else _full_scale(image, is_unsigned=is_unsigned)
    transparent = image.info.get("transparency")
    rows, opaque = [], []
    for band in _bands(image):
        values = _finite(band, is_unsigned=is_unsigned)
        scaled = np.clip(np.rint(values * (255.0 / full_scale)), 0, 255).astype(np.uint8)
        rows.append(255 - scaled if is_white_zero else scaled)
        if isinstance(transparent, int):
            opaque.append(np.where(values == transparent, np.uint8(0), np.uint8(255)))
    grey = Image.fromarray(np.concatenate(rows))
    return Image.merge("LA", (grey, Image.fromarray(np.concatenate(opaque)))) if opaque else grey


def _full_scale(image: Image.Image, *, is_unsigned: bool) -> float:
    """The value that means white: 1, 255 or 65,535, the smallest that no pixel exceeds, else the largest pixel."""
    largest = max(float(_finite(band, is_unsigned=is_unsigned).max()) for band in _bands(image))
    return next((scale for scale in (1.0, 255.0, 65535.0) if largest <= scale), largest)


def _finite(image: Image.Image, *, is_unsigned: bool) -> NDArray[np.float32]:
    """The pixels of a grey image as float32, 0 for NaN and infinities."""
    pixels = np.asarray(image)
    pixels = pixels.view(np.uint32) if is_unsigned else pixels
    return np.nan_to_num(pixels.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
