"""Warnings about uploads in words, as responses state them: a code, a colon, and what it means for the verdict."""

from app.detection.imaging.decode import MAX_PIXELS, Preprocess, decode_image
from app.detection.imaging.frames import count_frames
from app.detection.imaging.preprocess import PreprocessedImage

WORDS = {
    "blank": "no ink was found",
    "low_contrast": "ink and paper hardly differ",
    "touches_border": "the digit touches the edge of the image, and part of it may be missing",
    "upscaled": "the digit measures less than 12 pixels, for which no false-alarm rate is promised",
    "uncalibrated": "the detector was not calibrated on images of this kind; more than alpha of them may be flagged",
    "looks_inverted": "all corners are bright; a 28x28 image is taken as it is, with 0 = background and 255 = ink",
}


def in_words(code: str) -> str:
    """The code with its meaning; a code that states a number, as `several_glyphs: 2`, stays as it is."""
    return f"{code}: {WORDS[code]}" if code in WORDS else code


UNCALIBRATED, LOOKS_INVERTED = in_words("uncalibrated"), in_words("looks_inverted")


def decode_upload(
    data: bytes, *, preprocess: Preprocess = "auto", max_pixels: int = MAX_PIXELS, size: int = 28
) -> PreprocessedImage:
    """`decode_image`, with the warnings in words, and with that of a file of several pictures."""
    image = decode_image(data, preprocess=preprocess, max_pixels=max_pixels, size=size)
    warnings = tuple(map(in_words, image.warnings))
    if (frames := count_frames(data)) > 1:
        warnings = (f"several_frames: the first of {frames} pictures is used", *warnings)
    return image._replace(warnings=warnings) if warnings else image
