"""The errors that clients can receive, each with status, type and title; their bodies follow RFC 9457.

Problem
├── BadRequest (400)          bad-request: not valid HTTP
├── InvalidJson (400)         invalid-json
├── InvalidBody (400)         undecodable-image: a damaged image or array
├── NotAnImage (400)          not-an-image: the content is no image at all
├── InvalidForm (400)         invalid-form: not valid multipart/form-data
├── MissingFile (400)         missing-file: a form without a part named `file`
├── Unauthorized (401)        unauthorized
├── NotFound (404)            not-found
├── MethodNotAllowed (405)    method-not-allowed
├── RequestTimeout (408)      request-timeout: the client sends too slowly
├── TooLarge (413)            too-large: body, image count or pixel count
├── UnsupportedType (415)     unsupported-type
├── OutOfRange (422)          parameter-out-of-range
├── UnknownParameter (422)    unknown-parameter
├── DecodingLimit (422)       decoding-limit: the image takes too much time or memory to decode
├── InternalError (500)       internal-error: a defect of this program
├── Unavailable (503)         unavailable: overloaded, draining or not ready; carries Retry-After
└── DeadlinePassed (504)      deadline-passed
"""

from typing import Any, ClassVar
from urllib.parse import quote

from pydantic import ValidationError

from app.detection.imaging.errors import DecodingTooLong, ImageError, ImageTooLarge, TooManyImages, UnsupportedImage

MEDIA_TYPE = "application/problem+json"
RESULT = b"oddigit-result"  # the header that says how many images were judged, or which problem there was


class Problem(Exception):
    """An error response. `detail` is a sentence for the client; `headers` are added to the response."""

    status: ClassVar[int]
    type: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = headers or {}

    def body(self, instance: str, request_id: str, root_path: str = "") -> dict[str, Any]:
        """The problem object of RFC 9457 for the decoded request path `instance`, of a server under `root_path`."""
        return {
            "type": f"{root_path}/problems/{self.type}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": quote(instance, safe="/!$&'()*+,;=:@~"),
            "request_id": request_id,
        }


class BadRequest(Problem):
    """The request is not valid HTTP/1.1, for instance because it has no Host header."""

    status, type, title = 400, "bad-request", "The request is not valid"


class InvalidJson(Problem):
    """The body is not valid JSON; `detail` says where the error is."""

    status, type, title = 400, "invalid-json", "The body is not valid JSON"


class InvalidBody(Problem):
    """The image or array is truncated or damaged, or the array has another type or shape than images have."""

    status, type, title = 400, "undecodable-image", "The image could not be decoded"


class NotAnImage(Problem):
    """The content is no image of an accepted type: text, a file name, a web page, noise, or empty."""

    status, type, title = 400, "not-an-image", "The upload is not an image"


class InvalidForm(Problem):
    """The body is not valid multipart/form-data or ends too early, or its boundary is not that of the Content-Type."""

    status, type, title = 400, "invalid-form", "The form cannot be read"


class MissingFile(Problem):
    """The form has no part named `file`; send each image as such a part, as `curl -F file=@seven.png` does."""

    status, type, title = 400, "missing-file", "The form has no image"


class Unauthorized(Problem):
    """The server requires an API key, and the request has none or a wrong one."""

    status, type, title = 401, "unauthorized", "An API key is needed"


class NotFound(Problem):
    """The path, model, version or picture does not exist; `detail` names the nearest path, or lists those that exist."""

    status, type, title = 404, "not-found", "There is nothing here"


class MethodNotAllowed(Problem):
    """The path does not have this method; the Allow header lists its methods."""

    status, type, title = 405, "method-not-allowed", "The method is not allowed here"


class RequestTimeout(Problem):
    """The client stopped sending its request, or sends it too slowly."""

    status, type, title = 408, "request-timeout", "The request was not received in time"


class TooLarge(Problem):
    """The body, the number of images or an image's pixel count is over the limit; `detail` states it."""

    status, type, title = 413, "too-large", "The upload is over a limit"


class UnsupportedType(Problem):
    """The body must be a PNG, JPEG, WEBP, BMP, GIF or TIFF image, a form of such images, or a .npy array; not compressed."""

    status, type, title = 415, "unsupported-type", "The content type is not supported"


class OutOfRange(Problem):
    """The value of a parameter is not allowed; `detail` names the parameter and its allowed values."""

    status, type, title = 422, "parameter-out-of-range", "A parameter is out of range"


class UnknownParameter(Problem):
    """The query has a parameter that does not exist; `detail` names the nearest one that does."""

    status, type, title = 422, "unknown-parameter", "There is no such parameter"


class DecodingLimit(Problem):
    """Decoding the images took too much time or memory; save them as plain PNG or JPEG, or send fewer at once."""

    status, type, title = 422, "decoding-limit", "The image takes too long to decode"


class InternalError(Problem):
    """A defect of this program. The server's log has the traceback under the request id."""

    status, type, title = 500, "internal-error", "The server made an error"


class Unavailable(Problem):
    """The server is overloaded, shutting down or not ready yet; the Retry-After header says when to try again."""

    status, type, title = 503, "unavailable", "The server cannot take this now"


class DeadlinePassed(Problem):
    """The request waited in the server for longer than its deadline."""

    status, type, title = 504, "deadline-passed", "The deadline passed"


PROBLEMS: tuple[type[Problem], ...] = tuple(Problem.__subclasses__())
BY_STATUS: dict[int, type[Problem]] = {problem.status: problem for problem in reversed(PROBLEMS)}  # of two, the first


def from_validation_error(error: ValidationError) -> InvalidJson | OutOfRange:
    """The problem for a body that a pydantic model refused: InvalidJson if it is not JSON, else OutOfRange.

    `detail` describes the first violation.
    """
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return InvalidJson(f"{first['msg']}.")
    location = ".".join(str(step) for step in first["loc"])
    return OutOfRange(f"{location or 'The body'}: {first['msg']}.")


def from_image_error(error: ImageError, name: str = "") -> Problem:
    """The problem for an image that could not be decoded; `name` is put before its sentence."""
    detail = f"{name}: {error}" if name else str(error)
    if isinstance(error, ImageTooLarge | TooManyImages):
        return TooLarge(detail)
    if isinstance(error, DecodingTooLong):
        return DecodingLimit(detail)
    if isinstance(error, UnsupportedImage):
        return UnsupportedType(detail)
    return InvalidBody(detail)
