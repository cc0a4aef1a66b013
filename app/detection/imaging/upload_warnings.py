"""Warnings about uploads in words, as responses state them: a code, a colon, and what it means for the verdict."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.detection.imaging.centring import centre_images
from app.detection.imaging.decode import MAX_PIXELS, Preprocess, decode_image, decode_scanlines
from app.detection.imaging.frames import count_frames
from app.detection.imaging.preprocess import PreprocessedImage

WORDS = {
    "blank": "no ink was found",
    "low_contrast": "ink and paper hardly differ",
    "touches_border": "the digit touches the edge of the image, and part of it may be missing",
    "upscaled": "the digit measures less than 12 pixels, for which no false-alarm rate is promised",
    "uncalibrated": "images of this kind were not calibrated; more than alpha of them may be flagged",
    "looks_inverted": "all corners are bright; a 28x28 image is taken as it is, with 0 = background and 255 = ink",
}
_BRIGHT = 127  # corners that are brighter than this are taken for white paper


def in_words(code: str) -> str:
    """The code with its meaning; a code that states a number, as `several_glyphs: 2`, stays as it is."""
    return f"{code}: {WORDS[code]}" if code in WORDS else code


UNCALIBRATED, LOOKS_INVERTED = in_words("uncalibrated"), in_words("looks_inverted")


def with_calibration(warnings: Sequence[str], steps: Sequence[str], preparation: str, calibrated: bool) -> tuple[str, ...]:
    """Add the warning `uncalibrated` to the warnings of an image if the detector was not calibrated on such images.

    `steps` are what was done to the image, `preparation` is that of the detector's card, `calibrated` is what the detector
    says of the image. The detector does not know of an image that was only resized, although its card asks for more.
    """
    only_resized = preparation != "none" and "resized" in steps
    return tuple(warnings) if calibrated and not only_resized else (*warnings, UNCALIBRATED)


def decode_upload(
    data: bytes, *, preprocess: Preprocess = "auto", max_pixels: int = MAX_PIXELS, size: int = 28
) -> PreprocessedImage:
    """`decode_image`, with the warnings in words, and with those that the file's headers and its corners give."""
    image = decode_image(data, preprocess=preprocess, max_pixels=max_pixels, size=size)
    return _with_warnings(image, data, dark_ground=preprocess != "none")


def decode_plain_uploads(scanlines: Sequence[bytes]) -> list[PreprocessedImage]:
    """`decode_upload` for several files at once, of which `plain_scanlines` returned these scanlines."""
    images, moved = centre_images(decode_scanlines(scanlines))
    return [
        PreprocessedImage(image, ("centred",) if shifted else (), (LOOKS_INVERTED,) if _is_inverted(image) else ())
        for image, shifted in zip(images, moved.tolist(), strict=True)
    ]


def _with_warnings(image: PreprocessedImage, data: bytes, *, dark_ground: bool) -> PreprocessedImage:
    """`dark_ground`: images that are not prepared are expected on a dark ground."""
    warnings = tuple(map(in_words, image.warnings))
    if (frames := count_frames(data)) > 1:
        warnings = (f"several_frames: the first of {frames} pictures is used", *warnings)
    if dark_ground and image.features is None and _is_inverted(image.image):
        warnings = (*warnings, LOOKS_INVERTED)
    return image._replace(warnings=warnings) if warnings else image


def _is_inverted(image: NDArray[np.uint8]) -> bool:
    """`looks_inverted` for one image [S, S]."""
    return bool(image[0, 0] > _BRIGHT and looks_inverted(image[None])[0])  # most have one dark corner, which is quick to see


def looks_inverted(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """For each of the images [N, S, S] that were not prepared, whether all its corners are bright."""
    last = images.shape[-1] - 1
    inverted: NDArray[np.bool_] = images[:, ::last, ::last].min(axis=(1, 2)) > _BRIGHT
    return inverted
