"""Errors of the image decoders. Each message is a sentence for the client that sent the image."""

TOO_MUCH_MEMORY = "decoding this image takes too much memory"


class ImageError(ValueError):
    """An upload that cannot be used; the message says why."""


class UndecodableImage(ImageError):
    """The file is damaged, truncated, or not an image."""


class UnsupportedImage(ImageError):
    """The file is of a known type that is not accepted, for example SVG, PDF or HEIC."""


class DecodingTooLong(ImageError):
    """Decoding takes more CPU time or memory than one image may take, or ended its process."""


class ImageTooLarge(ImageError):
    """The header declares more pixels than the limit."""


class TooManyImages(ImageError):
    """The array holds more images than the limit."""
