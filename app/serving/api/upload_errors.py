"""Problems with uploads. Each `detail` says what came, what is accepted, and what to do."""

import re

from app.detection.imaging.errors import ImageError, UndecodableImage
from app.detection.imaging.file_headers import sniff
from app.serving.api.query import JSON, NPY
from app.serving.errors import InvalidBody, InvalidForm, MissingFile, NotAnImage, Problem, UnsupportedType, from_image_error

ACCEPTED = "PNG, JPEG, WebP, BMP, GIF or TIFF"
_FORM_HINT = "a form, as `curl -F file=@seven.png`"
_FILE_NAME = re.compile(rb"[^\x00-\x1f\x7f]{1,512}\.(?:png|jpe?g|webp|bmp|gif|tiff?|npy)\s*", re.IGNORECASE)
_FIELD = re.compile(rb"content-disposition:\s*form-data;\s*name=\"?([^\";\r\n]{1,64})", re.IGNORECASE)
_LONGEST_KIND = 100
_SEARCHED_BYTES = 64 * 1024  # of a form for the names of its fields, in 1 ms


def unsupported_type(kind: str, name: str = "") -> UnsupportedType:
    """The 415 for a content type; `name` is that of a form's part."""
    prefix, kind = f"{name}: " if name else "", kind[:_LONGEST_KIND]
    if not kind:
        text = f"The request has no Content-Type; send {_FORM_HINT}, or an image with its type, as image/png."
    elif kind == "application/x-www-form-urlencoded":
        text = f"{kind} is what curl declares by itself; add -H 'Content-Type: image/png', or send {_FORM_HINT}."
    elif kind == JSON:
        text = f"{JSON} is not accepted here; send an image, or pixels as JSON to /v2/models/NAME/infer."
    else:
        text = f"{kind} is not accepted; send an image ({ACCEPTED}), multipart/form-data, or {NPY}."
    return UnsupportedType(prefix + text)


def image_problem(error: ImageError, data: bytes, name: str = "") -> Problem:
    """The problem for a file that could not be decoded, with a hint where the content shows what went wrong."""
    problem = from_image_error(error, name)
    if str(error).startswith(("truncated", "damaged")):
        return type(problem)(f"{problem.detail}; save the image again, and send the whole file.")
    if not isinstance(error, UndecodableImage) or _has_signature(data):
        return problem
    hint = _hint(data)
    return NotAnImage(f"{problem.detail}; {hint or f'send {ACCEPTED}'}.")


def form_problem(error: InvalidBody, data: bytes) -> Problem:
    """The problem for a form without images: MissingFile if it has other fields, else InvalidForm."""
    start = bytes(data[:_SEARCHED_BYTES])
    found = _FIELD.findall(start)
    names = list(dict.fromkeys(name.decode("utf-8", "replace") for name in found))[:5]
    if names and "file" not in names:
        shown = ", ".join(repr("".join(filter(str.isprintable, name))) for name in names)
        return MissingFile(f"The form has {shown}, but no part named 'file'; send each image as `curl -F file=@seven.png`.")
    if not names and start.startswith(b"--"):
        return MissingFile("The form has no part named 'file'; send each image as `curl -F file=@seven.png`.")
    return InvalidForm(error.detail)


def array_problem(error: ImageError, data: bytes) -> Problem:
    """The problem for an array that cannot be used."""
    hint = _hint(data)
    return from_image_error(type(error)(f"{error}; {hint}")) if hint else from_image_error(error)


def _has_signature(data: bytes) -> bool:
    try:
        return bool(sniff(data))
    except ImageError:
        return False


def _hint(data: bytes) -> str | None:
    """What data that are no image look like, and what to do; None if they look like nothing known."""
    start = bytes(data[:600]).lstrip().lower()
    if len(data) <= 600 and _FILE_NAME.fullmatch(data):
        return "it is the name of a file and not its content: put an @ before it, as in `curl -F file=@seven.png`"
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is an HTML page; the address of a picture may lead to a page about it"
    if start.startswith((b"ivborw0kggo", b"/9j/", b"data:image/")):
        return "it is base64; send the bytes that it stands for"
    if start.startswith((b"{", b"[")):
        return "it looks like JSON; pixels as JSON go to /v2/models/NAME/infer"
    return None
