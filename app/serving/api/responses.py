"""Outcomes -> the bytes of answers: JSON, PNG or .npy. The fields are those of schemas.py, built by hand for speed."""

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from app.detection.bundle import Bundle
from app.detection.detector import Detections
from app.detection.imaging.decode import encode_png

Entry = dict[str, Any]

_HEAT_FULL = 4.0  # an error map's pixel is fully bright at four times what is usual
_ENLARGE = 4  # a picture's pixels for one of the image's
_GAP = 8  # pixels between the images of a picture


class ImageInfo(NamedTuple):
    """What an answer says of one image besides the detection."""

    name: str
    preprocess: Sequence[str] = ()
    warnings: Sequence[str] = ()


def model_entry(bundle: Bundle) -> Entry:
    return {"name": bundle.card.name, "version": bundle.card.version}


def score_entries(shown: Sequence[ImageInfo], detections: Detections, threshold: float) -> Iterator[Entry]:
    """The `results` of /score."""
    columns = zip(
        shown,
        detections.scores.tolist(),
        detections.p_values.tolist(),
        detections.reconstruction_errors.tolist(),
        strict=True,
    )
    for (name, preprocess, warnings), score, p_value, error in columns:
        yield {
            "name": name,
            "score": score,
            "p_value": p_value,
            "is_anomaly": score > threshold,
            "reconstruction_error": error,
            "preprocess": preprocess,
            "warnings": warnings,
        }


def embed_entries(shown: Sequence[ImageInfo], detections: Detections) -> Iterator[Entry]:
    """The `results` of /embed."""
    for (name, preprocess, warnings), embedding in zip(shown, detections.embeddings.tolist(), strict=True):
        yield {"name": name, "embedding": embedding, "preprocess": preprocess, "warnings": warnings}


def reconstruct_entries(shown: Sequence[ImageInfo], images: NDArray[np.uint8], detections: Detections) -> Iterator[Entry]:
    """The `results` of /reconstruct; `images` are what the network saw."""
    for index, (name, preprocess, warnings) in enumerate(shown):
        given, made, error_map = _triple(images, detections, index)
        yield {
            "name": name,
            "input": picture_text(given),
            "reconstruction": picture_text(made),
            "error_map": picture_text(error_map),
            "preprocess": preprocess,
            "warnings": warnings,
        }


def picture_text(pixels: NDArray[np.uint8]) -> str:
    """uint8 pixels -> a PNG in base64."""
    return base64.b64encode(encode_png(pixels)).decode()


def sheet(images: NDArray[np.uint8], detections: Detections) -> bytes:
    """One PNG with a row an image: input | reconstruction | error map, enlarged."""
    side = images.shape[-1] * _ENLARGE
    rows, step = len(detections.scores), side + _GAP
    canvas = np.full((rows * step + _GAP, 3 * step + _GAP, 3), 255, np.uint8)
    for row in range(rows):
        for column, pixels in enumerate(_triple(images, detections, row)):
            colour = pixels if pixels.ndim == 3 else np.stack([pixels] * 3, axis=-1)
            large = colour.repeat(_ENLARGE, axis=0).repeat(_ENLARGE, axis=1)
            top, left = _GAP + row * step, _GAP + column * step
            canvas[top : top + side, left : left + side] = large
    return encode_png(canvas)


def npy(array: NDArray[Any]) -> bytes:
    """An array as the bytes of a .npy file."""
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


def server_timing(decode: float, queue: float, infer: float, encode: float) -> bytes:
    """The value of the Server-Timing header (W3C Server Timing) for the seconds spent in each stage."""
    milliseconds = (decode * 1e3, queue * 1e3, infer * 1e3, encode * 1e3)
    return b"decode;dur=%.3f, queue;dur=%.3f, infer;dur=%.3f, encode;dur=%.3f" % milliseconds


def json_bytes(content: object) -> bytes:
    """Plain content as JSON; NaN and infinities cannot occur and would become null."""
    return to_json(content, inf_nan_mode="null")


def _triple(images: NDArray[np.uint8], detections: Detections, index: int) -> tuple[NDArray[np.uint8], ...]:
    assert detections.reconstructions is not None and detections.error_maps is not None
    return (
        images[index],
        to_uint8(detections.reconstructions[index]),
        heat(detections.error_maps[index]),
    )


def to_uint8(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[0, 1] -> uint8 of the same shape."""
    return np.rint(values * 255).astype(np.uint8)


def heat(error_map: NDArray[np.float32]) -> NDArray[np.uint8]:
    """How odd each pixel is, 1 = usual -> black over red and yellow to white, uint8 [S, S, 3]."""
    level = np.clip(error_map / _HEAT_FULL, 0, 1)[..., None] * 3
    pixels: NDArray[np.uint8] = np.rint(np.clip(level - np.arange(3), 0, 1) * 255).astype(np.uint8)
    return pixels
