"""Decodes untrusted image files, and encodes PNGs. No other file of the program decodes images.

Input: the bytes of one image file. Output: uint8 images of the model's size, or an `ImageError` whose
message is a sentence for the client. File type and pixel count are read from the header before anything is decompressed.
Of the metadata only the EXIF orientation is used.
"""

import io
import math
import warnings
import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from app.detection.imaging.centring import centre_image, centre_images
from app.detection.imaging.decoding_cost import decoding_seconds
from app.detection.imaging.display_mode import to_display_mode
from app.detection.imaging.errors import (
    TOO_MUCH_MEMORY,
    DecodingTooLong,
    ImageError,
    ImageTooLarge,
    UndecodableImage,
)
from app.detection.imaging.file_headers import (
    PNG_START,
    declared_size,
    sniff,
    strip_gif,
    strip_jpeg,
    strip_png,
)
from app.detection.imaging.preprocess import WORKING_SIDE, PreprocessedImage, preprocess_digit
from app.detection.imaging.tiff import check_layout, check_page, without_directories

Preprocess = Literal["auto", "none", "digit"]
Pixels = NDArray[np.uint8]

MAX_PIXELS = 25_000_000


def choose_preprocess(asked: Preprocess, of_card: Preprocess) -> Preprocess:
    """Return how to prepare an upload: as `asked`, except that `auto` is `none` for a detector whose card says `none`."""
    return "none" if asked == "auto" and of_card == "none" else asked


def decode_image(
    data: bytes, *, preprocess: Preprocess = "auto", max_pixels: int = MAX_PIXELS, size: int = 28
) -> PreprocessedImage:
    """Decode one image file to the size that the model reads.

    `data` holds a PNG, JPEG, WebP, BMP, GIF (first frame) or TIFF (first page). The EXIF orientation is applied, transparency
    is composited on white or black, 16 bits are scaled to 8. Then `none` only fits the image into size x size grey; `digit`
    applies the preprocessing of MNIST; `auto` keeps the grey values of a grey size x size image, which it shifts only if it
    lies off the middle, and treats any other image as `digit`.

    Returns a `PreprocessedImage`: image uint8 [size, size] (0 = background, 255 = ink).
    Raises UndecodableImage, UnsupportedImage, ImageTooLarge or DecodingTooLong, and no other exception for any input.
    """
    if preprocess != "digit" and size == 28 and (plain := plain_scanlines(data)) is not None:
        grey = decode_scanlines([plain])[0]
        return PreprocessedImage(grey) if preprocess == "none" else _centred_grey(grey, ())
    kind = sniff(data)
    decoding_seconds(data, max_pixels)  # refuses a file that would take too long
    try:
        shown, steps = to_display_mode(_open(data, kind, max_pixels))
        pixels = np.asarray(shown)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"more pixels than the {max_pixels:,} that are accepted") from error
    except MemoryError as error:
        raise DecodingTooLong(TOO_MUCH_MEMORY) from error
    except Exception as error:  # Pillow raises many types, SyntaxError among them
        raise UndecodableImage(_error_text(kind, error)) from error
    return _to_model_size(pixels, steps, preprocess, size)


def load_codecs() -> None:
    """Import the code of all image types now. Pillow would do so at the first image."""
    Image.init()


def encode_png(pixels: Pixels) -> bytes:
    """Encode uint8 [H, W] (grey) or [H, W, 3] (RGB) as a PNG."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG")
    return out.getvalue()


def _error_text(kind: str, error: Exception) -> str:
    if kind == "TIFF" and isinstance(error, UnidentifiedImageError):
        return "this TIFF is damaged, or of a kind that is not read; save it with 8 bits a sample, without compression"
    text = str(error).lower()
    truncated = any(word in text for word in ("truncated", "not enough", "incomplete", "broken data stream"))
    return f"{'truncated' if truncated else 'damaged'} {kind}"


# Pillow warns about odd metadata with text from the file, which would fill the log. The filter is set once for the process,
# because catch_warnings changes state that threads share.
warnings.filterwarnings("ignore", module=r"PIL\.")


_MAX_WEBP_SHARE = 0.5  # of the pixel limit
_MAX_SIDE = 65_535  # pixels, as of a JPEG or a GIF; Pillow keeps an address for each row


def _open(data: bytes, kind: str, max_pixels: int) -> Image.Image:
    """Check the header, check the limits, then load the pixels. The EXIF orientation is not applied yet."""
    declared, page = declared_size(data, kind), None
    if declared is not None:  # before Image.open, which allocates the canvas of a WebP
        _check_size(*declared, max_pixels)
    if kind == "PNG":
        data = strip_png(data)
    elif kind == "GIF":
        data = strip_gif(data)
    elif kind == "WEBP":
        _check_webp(data, max_pixels)
    elif kind == "JPEG":
        data = strip_jpeg(data)
    elif kind == "TIFF":
        page, data = check_page(data, max_pixels), without_directories(data)
    image = Image.open(io.BytesIO(data), formats=[kind])
    _check_size(*image.size, max_pixels)
    if declared is not None and math.prod(image.size) > math.prod(declared):  # its cost was estimated from `declared`
        raise UndecodableImage(f"damaged {kind}: its picture is larger than its header says")
    if isinstance(image, ImageFile):
        image.draft(None, (2 * WORKING_SIDE, 2 * WORKING_SIDE))  # decode a large JPEG at a reduced size
    if page:
        check_layout(page, image.mode)
    box = image.tile[0].extents if kind == "GIF" and isinstance(image, ImageFile) and image.tile else None
    image.load()
    # Pillow shows black where the first frame of a GIF does not cover the canvas, and viewers what is behind.
    return image if box is None or box == (0, 0, *image.size) else image.crop(box)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise UndecodableImage(f"{width} x {height} pixels: there is nothing in this image")
    if width * height > max_pixels or max(width, height) > _MAX_SIDE:
        most = f"at most {max_pixels:,}, and {_MAX_SIDE:,} on a side, are accepted"
        raise ImageTooLarge(f"{width:,} x {height:,} pixels; {most}")


def _check_webp(data: bytes, max_pixels: int) -> None:
    """Check that the file is complete, and apply the smaller maximum of this type: libwebp and Pillow hold four copies."""
    width, height = declared_size(data, "WEBP") or (0, 0)
    if width * height > _MAX_WEBP_SHARE * max_pixels:
        most = int(_MAX_WEBP_SHARE * max_pixels)
        raise ImageTooLarge(f"{width:,} x {height:,} pixels; at most {most:,} are accepted in a WebP, send a PNG or JPEG")
    if len(data) < int.from_bytes(data[4:8], "little") + 8:
        raise UndecodableImage("truncated WEBP")


_QUICK_BYTES, _QUICK_PIXELS = 2048, 10_000
_GREY_TYPES = (b"\0", b"\4")  # colour types of a PNG: grey, and grey with transparency
_PLAIN_HEAD = PNG_START + b"\x00\x00\x00\x1c\x00\x00\x00\x1c\x08\x00\x00\x00\x00Wf\x80H"
_PLAIN_TAIL = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_EMPTY_LINE = bytes(29)  # of a 28x28 image: the filter, none, and the pixels
_LAST_FILTER = 4  # the types of a PNG's filters are 0 to 4
_BRIGHT = 127  # corners that are brighter than this are taken for white paper


def decodes_quickly(data: bytes, preprocess: Preprocess, size: int) -> bool:
    """Return whether `decode_image` takes less than 1 ms.

    That is true of a small file that holds a grey PNG of the model's size or, with `none`, any PNG of at most 10,000 pixels. An
    image that goes through `preprocess_digit` takes 5 to 20 ms, however small it is. The header of other file types does not
    limit the time that decoding takes.
    """
    if len(data) > _QUICK_BYTES or not data.startswith(PNG_START) or preprocess == "digit":
        return False
    width, height, colour_type = int.from_bytes(data[16:20]), int.from_bytes(data[20:24]), data[25:26]
    if preprocess == "none":
        return width * height <= _QUICK_PIXELS
    return width == height == size and colour_type in _GREY_TYPES


def plain_scanlines(data: bytes) -> bytes | None:
    """Return the scanlines of a small grey 8-bit 28x28 PNG with one IDAT chunk, still filtered; None for any other file.

    With `decode_scanlines`, they are a way to the pixels that takes half the time of `Image.open`, which spends most of it on
    parsing. For a damaged file, `decode_image` says what is wrong.
    """
    if len(data) > _QUICK_BYTES or data[:33] != _PLAIN_HEAD or data[-12:] != _PLAIN_TAIL or data[37:41] != b"IDAT":
        return None
    end = len(data) - 16
    if int.from_bytes(data[33:37]) != end - 41 or int.from_bytes(data[end : end + 4]) != zlib.crc32(data[37:end]):
        return None
    inflate = zlib.decompressobj()
    try:
        scanlines = inflate.decompress(data[41:end], 28 * 29 + 1)
    except zlib.error:
        return None
    complete = len(scanlines) == 28 * 29 and inflate.eof
    return scanlines if complete and max(scanlines[::29]) <= _LAST_FILTER else None


def decode_scanlines(images: Sequence[bytes]) -> Pixels:
    """Undo the filters of the scanlines of N images: uint8 [N, 28, 28]. N calls of Pillow would take six times as long.

    Pillow decodes all as one tall image. After each of them comes an empty line, because the first line of an image is
    filtered as if an empty one were above it.
    """
    stacked = zlib.compress(_EMPTY_LINE.join((*images, b"")), 0)  # Pillow reads compressed data; level 0 only copies
    tall = Image.frombytes("L", (28, 29 * len(images)), stacked, "zip", "L", 0)
    return np.frombuffer(tall.tobytes(), np.uint8).reshape(-1, 29, 28)[:, :28]


def decode_plain_images(scanlines: Sequence[bytes]) -> list[PreprocessedImage]:
    """`decode_image` with the preprocessing `auto` for several files at once; `scanlines` are from `plain_scanlines`."""
    images, moved = centre_images(decode_scanlines(scanlines))
    return [
        PreprocessedImage(image, ("centred",) if shifted else (), _inversion_warnings(image))
        for image, shifted in zip(images, moved.tolist(), strict=True)
    ]


def looks_inverted(images: Pixels) -> NDArray[np.bool_]:
    """For each of the images [N, S, S] that did not go through `preprocess_digit`, whether all its corners are bright."""
    last = images.shape[-1] - 1
    inverted: NDArray[np.bool_] = images[:, ::last, ::last].min(axis=(1, 2)) > _BRIGHT
    return inverted


def _inversion_warnings(image: Pixels) -> tuple[str, ...]:
    """The warning of an image [S, S] that is taken as it is, but looks inverted."""
    is_inverted = image[0, 0] > _BRIGHT and looks_inverted(image[None])[0]  # most have one dark corner, which is quick to see
    return ("looks_inverted",) if is_inverted else ()


def _to_model_size(pixels: Pixels, steps: tuple[str, ...], preprocess: Preprocess, size: int) -> PreprocessedImage:
    if preprocess == "none":
        return _resized(Image.fromarray(pixels), steps, size)
    grey = _as_grey(pixels) if preprocess == "auto" and pixels.shape[:2] == (size, size) else None
    if grey is None:
        return preprocess_digit(pixels, size=size, steps=steps)
    return _centred_grey(grey, steps)


def _centred_grey(grey: Pixels, steps: tuple[str, ...]) -> PreprocessedImage:
    image, moved = centre_image(grey)
    return PreprocessedImage(image, (*steps, "centred") if moved else steps, _inversion_warnings(image))


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
        image, steps = _fitted(image, size), (*steps, "resized")
    return PreprocessedImage(np.asarray(image), steps)


def _fitted(image: Image.Image, size: int) -> Image.Image:
    """Resize a grey image to a longest side of `size`; the rest of the square is filled with the median of its border.

    A pixel of a smaller result is the mean of the pixels in its area. This restores an image exactly after it was enlarged by
    an integer factor, unless it is so large that it was reduced before.
    """
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    fitted = image.resize((width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR)
    if width == height:
        return fitted
    pixels = np.asarray(fitted)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    square = Image.new("L", (size, size), int(np.median(border)))
    square.paste(fitted, ((size - width) // 2, (size - height) // 2))
    return square
