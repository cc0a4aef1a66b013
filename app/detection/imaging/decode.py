"""Untrusted bytes -> pixels; pixels -> PNG. The only decoder of images.

In: the bytes of one picture, or of one .npy array, from anyone. Out: uint8 pixels, or an `ImageError` whose
message is a sentence for the sender. The type and the pixel count are read from the header before anything is unpacked,
and no metadata is trusted beyond the orientation. The file knows no HTTP, no model and not what a digit looks like:
`prepare.py` does that part.
"""

import io
import warnings
import zlib
from typing import Literal, assert_never

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

from app.detection.imaging.file_headers import ImageError as ImageError
from app.detection.imaging.file_headers import ImageTooLarge as ImageTooLarge
from app.detection.imaging.file_headers import TooManyImages as TooManyImages
from app.detection.imaging.file_headers import UndecodableImage as UndecodableImage
from app.detection.imaging.file_headers import UnsupportedImage as UnsupportedImage
from app.detection.imaging.file_headers import (
    check_bmp,
    check_tiff,
    claimed_size,
    essential_png,
    exif_orientation,
    npy_field,
    npy_header,
    npy_shape,
    sniff,
)
from app.detection.imaging.preprocess import WORKING_SIDE, preprocess_digit
from app.detection.imaging.preprocess import PreprocessedImage as PreprocessedImage

Preprocess = Literal["auto", "none", "digit"]
Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

MAX_PIXELS = 25_000_000


def decode_image(
    data: bytes, *, preprocess: Preprocess = "auto", max_pixels: int = MAX_PIXELS, size: int = 28
) -> PreprocessedImage:
    """Decode one picture and bring it to the shape that the model reads.

    `data` holds a PNG, JPEG, WebP, BMP, GIF (first frame) or TIFF (first page). It is shown as a viewer would show it:
    turned as its EXIF says, transparency over white, 16 bits scaled to 8. `none` resizes it to size x size grey, no more;
    `digit` prepares it as MNIST's makers did; `auto` leaves a grey size x size image as it is, bit for bit, and treats
    anything else as `digit`.

    Returns a `PreprocessedImage`: image uint8 [size, size] (0 = background, 255 = ink).
    Raises UndecodableImage, UnsupportedImage or ImageTooLarge; nothing else, whatever the bytes.
    """
    if preprocess != "digit" and size == 28 and (plain := _plain_png(data)) is not None:
        return PreprocessedImage(plain)
    kind = sniff(data)
    try:
        shown, steps = _show(_open(data, kind, max_pixels))
        pixels = np.asarray(shown)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"more pixels than the {max_pixels:,} that are accepted") from error
    except Exception as error:  # Pillow answers bad data with a dozen types, SyntaxError and MemoryError among them
        raise UndecodableImage(_complaint(kind, error)) from error
    return _bring_to_size(pixels, steps, preprocess, size)


def encode_png(pixels: Pixels) -> bytes:
    """uint8 [H, W] (grey) or [H, W, 3] (RGB) -> the bytes of a PNG."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG")
    return out.getvalue()


def decode_array(data: bytes, *, max_images: int = 100_000, size: int = 28) -> Pixels:
    """The bytes of a .npy file -> uint8 [N, size, size], a read-only view of `data` where its order allows.

    Accepts uint8 of shape [N, size, size] or [size, size], versions 1 to 3 of the format (NEP 1). Nothing is unpickled and
    nothing is allocated on the header's word. Raises UndecodableImage, or TooManyImages.
    """
    header, start = npy_header(data)
    shape = npy_shape(header)
    count = 1 if len(shape) == 2 else shape[0] if len(shape) == 3 else 0
    if shape[-2:] != (size, size) or len(shape) not in (2, 3):
        raise UndecodableImage(f"the array's shape is not [N, {size}, {size}] or [{size}, {size}]")
    if count == 0:
        raise UndecodableImage("the array holds no images")
    if count > max_images:
        raise TooManyImages(f"{count:,} images in one array; at most {max_images:,} are accepted")
    if len(data) - start != count * size * size:
        raise UndecodableImage(f"the array's header promises {count:,} images, its data are of another length")
    flat = np.frombuffer(data, np.uint8, offset=start)
    order: Literal["F", "C"] = "F" if b"True" in npy_field(header, b"fortran_order", rb"True|False") else "C"
    return np.ascontiguousarray(flat.reshape(shape, order=order).reshape(count, size, size))


def _complaint(kind: str, error: Exception) -> str:
    text = str(error).lower()
    cut = any(word in text for word in ("truncated", "not enough", "incomplete", "broken data stream"))
    return f"{'truncated' if cut else 'damaged'} {kind}"


# ------------------------------------------------------------------------------------------------- the header, then Pillow

# Pillow's remarks on odd metadata: in the sender's words, without end in the log and in the registry of those that were made.
# For good, since catch_warnings swaps state that threads share.
warnings.filterwarnings("ignore", module=r"PIL\.")


def _open(data: bytes, kind: str, max_pixels: int) -> Image.Image:
    """Header -> limits -> pixels, in this order. The picture comes back loaded, its orientation still to be applied."""
    claimed = claimed_size(data, kind)
    if claimed is not None:  # before Pillow: opening a WebP allocates its canvas
        _check_size(*claimed, max_pixels)
    if kind == "PNG":
        data = essential_png(data)
    elif kind == "BMP":
        check_bmp(data)
    elif kind == "TIFF":
        check_tiff(data)
    image = Image.open(io.BytesIO(data), formats=[kind])
    _check_size(*image.size, max_pixels)
    if kind == "TIFF":
        _check_tiles(image, max_pixels)
    if isinstance(image, ImageFile):
        image.draft(None, (2 * WORKING_SIDE, 2 * WORKING_SIDE))  # a JPEG need not be unpacked at its full size
    image.load()
    return image


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise UndecodableImage(f"{width} x {height} pixels: there is nothing in this image")
    if width * height > max_pixels:
        raise ImageTooLarge(f"{width:,} x {height:,} pixels; at most {max_pixels:,} are accepted")


def _check_tiles(image: Image.Image, max_pixels: int) -> None:
    """A TIFF's tiles are allocated whole, however small the picture."""
    tags = getattr(image, "tag_v2", {})
    width, height = tags.get(322), tags.get(323)
    if isinstance(width, int) and isinstance(height, int):
        _check_size(width, height, max_pixels)


# ------------------------------------------------------------------------------------------------------------------ PNG

_PLAIN_HEAD = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x1c\x00\x00\x00\x1c\x08\x00\x00\x00\x00Wf\x80H"
_PLAIN_TAIL = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def _plain_png(data: bytes) -> Pixels | None:
    """[28, 28] from the commonest upload, a grey 8-bit PNG of one IDAT chunk; None for anything else, or anything odd.

    Half the time of `Image.open`, whose work is mostly the parsing that these comparisons do.
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
    except Exception:  # the long way round finds the words for it
        return None
    return np.frombuffer(image.tobytes(), np.uint8).reshape(28, 28)


# ----------------------------------------------------------------------------------------------- as a viewer would show it

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _show(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Any mode -> L or RGB, no longer than twice the working side, and what was done to it."""
    steps: tuple[str, ...] = ()
    turn = _TURNS.get(exif_orientation(image.info.get("exif", b"")))
    image = _eight_bits(image)
    if image.has_transparency_data or image.mode in ("LA", "PA", "La", "RGBa"):
        image, steps = _over_white(image), ("composited_on_white",)
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    image = _shrink(image)
    if turn is not None:
        image, steps = image.transpose(turn), (*steps, "turned")
    return image, steps


def _shrink(image: Image.Image) -> Image.Image:
    factor = max(image.size) // (2 * WORKING_SIDE)
    return image.reduce(factor) if factor > 1 else image


def _over_white(image: Image.Image) -> Image.Image:
    """Premultiplied first, so that a large picture is shrunk before it is composited: colour + (255 - alpha) is over white."""
    image = image.convert("RGBA")
    if max(image.size) > 2 * WORKING_SIDE:
        small = np.asarray(_shrink(image.convert("RGBa"))).astype(np.uint16)
        return Image.fromarray(np.minimum(small[..., :3] + (255 - small[..., 3:]), 255).astype(np.uint8))
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Wide grey modes -> L: 16 bits keep their high byte, as viewers do; floats and 32 bits are read by their largest value."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.nan_to_num(np.asarray(image).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    top = float(values.max())
    full = 65535.0 if image.mode.startswith("I;16") else next((f for f in (1.0, 255.0, 65535.0) if top <= f), top)
    if image.mode == "I" and top <= 1:
        full = 255.0
    shown = np.clip(np.rint(values * (255.0 / full)), 0, 255).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        shown[values == clear] = 255
    return Image.fromarray(shown)


# ------------------------------------------------------------------------------------------------------- to the model's size


def _bring_to_size(pixels: Pixels, steps: tuple[str, ...], preprocess: Preprocess, size: int) -> PreprocessedImage:
    match preprocess:
        case "auto":
            grey = _as_grey(pixels) if pixels.shape[:2] == (size, size) else None
            return preprocess_digit(pixels, size=size, steps=steps) if grey is None else PreprocessedImage(grey, steps)
        case "digit":
            return preprocess_digit(pixels, size=size, steps=steps)
        case "none":
            return _resized(Image.fromarray(pixels), steps, size)
        case _:
            assert_never(preprocess)


def _as_grey(pixels: Pixels) -> Pixels | None:
    """[H, W] of a picture without colour, else None."""
    if pixels.ndim == 2:
        return pixels
    grey = pixels[..., 1]
    spread = np.ptp(pixels, axis=2).max()
    return grey if spread <= 2 else None  # a lossy WebP of a grey picture strays by 1


def _resized(image: Image.Image, steps: tuple[str, ...], size: int) -> PreprocessedImage:
    if image.mode != "L":
        image, steps = image.convert("L"), (*steps, "greyed")
    if image.size != (size, size):
        image, steps = image.resize((size, size), Image.Resampling.BILINEAR), (*steps, "resized")
    return PreprocessedImage(np.asarray(image), steps)
