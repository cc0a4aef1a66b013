"""Detections -> response bodies: JSON, PNG or .npy. The fields are those of schemas.py, built by hand for speed."""

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from app.detection.bundle import Bundle
from app.detection.detector import Detections, with_calibration
from app.detection.imaging.decode import encode_png
from app.serving.errors import RESULT

Entry = dict[str, Any]

_HEAT_FULL = 4.0  # a pixel of an error map is white at four times the usual residual
_ENLARGE = 4  # scale factor
_GAP = 8  # pixels between the images of a picture


class ImageInfo(NamedTuple):
    """The fields of a response about one image besides its detection."""

    name: str
    preprocess: Sequence[str] = ()
    warnings: Sequence[str] = ()


def server_timing(decode: float, queue: float, infer: float, encode: float) -> tuple[bytes, bytes]:
    """The Server-Timing header for the seconds that a request spent in each stage."""
    milliseconds = (decode * 1e3, queue * 1e3, infer * 1e3, encode * 1e3)
    return b"server-timing", b"decode;dur=%.3f, queue;dur=%.3f, infer;dur=%.3f, encode;dur=%.3f" % milliseconds


def result_header(images: int, anomalies: int | None = None) -> tuple[bytes, bytes]:
    """The Oddigit-Result header: the number of images that were judged and, where there are verdicts, of anomalies."""
    return RESULT, b"images=%d" % images if anomalies is None else b"images=%d, anomalies=%d" % (images, anomalies)


def model_entry(bundle: Bundle) -> Entry:
    """The name and version of the model, as responses state it."""
    return {"name": bundle.card.name, "version": bundle.card.version}


def score_entries(
    infos: Sequence[ImageInfo], detections: Detections, indices: range, preparation: str, alpha: float
) -> list[Entry]:
    """The elements of `results` of /score for the images with these indices; `preparation` is that of the model's card.

    An image is an anomaly if its p-value is at most `alpha`.
    """
    entries = []
    for index in indices:
        name, preprocess, warnings = infos[index]
        p_value = detections.p_values.item(index)
        entries.append(
            {
                "name": name,
                "score": detections.scores.item(index),
                "p_value": p_value,
                "is_anomaly": p_value <= alpha,
                "reconstruction_error": detections.reconstruction_errors.item(index),
                "preprocess": preprocess,
                "warnings": with_calibration(warnings, preprocess, preparation, detections.calibrated.item(index)),
            }
        )
    return entries


def embed_entries(infos: Sequence[ImageInfo], detections: Detections, indices: range) -> list[Entry]:
    """The elements of `results` of /embed for the images with these indices."""
    entries = []
    for index in indices:
        name, preprocess, warnings = infos[index]
        embedding = detections.embeddings[index].tolist()
        entries.append({"name": name, "embedding": embedding, "preprocess": preprocess, "warnings": warnings})
    return entries


def reconstruct_entries(
    infos: Sequence[ImageInfo], images: NDArray[np.uint8], detections: Detections, indices: range
) -> list[Entry]:
    """The elements of `results` of /reconstruct for some of the images [N, S, S], which are those that the network saw."""
    entries = []
    for index in indices:
        name, preprocess, warnings = infos[index]
        given, reconstruction, error_map = _triple(images, detections, index)
        entries.append(
            {
                "name": name,
                "input": picture_text(given),
                "reconstruction": picture_text(reconstruction),
                "error_map": picture_text(error_map),
                "preprocess": preprocess,
                "warnings": warnings,
            }
        )
    return entries


def picture_text(pixels: NDArray[np.uint8]) -> str:
    """uint8 pixels -> a PNG in base64."""
    return base64.b64encode(encode_png(pixels)).decode()


def contact_sheet(images: NDArray[np.uint8], detections: Detections) -> bytes:
    """One PNG with a row for each of the uint8 images [N, S, S]: input | reconstruction | error map, enlarged."""
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


def npy(array: NDArray[Any]) -> memoryview:
    """An array as the bytes of a .npy file; numpy.save would hold one more copy of the array meanwhile."""
    header, array = io.BytesIO(), np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return join_arrays(header.getvalue(), [array])


def join_arrays(head: bytes, arrays: Sequence[NDArray[Any]]) -> memoryview:
    """`head` and the bytes of contiguous arrays. Other threads can run while numpy copies, unlike in `bytes.join`."""
    parts = [np.frombuffer(head, np.uint8), *(array.reshape(-1).view(np.uint8) for array in arrays)]
    return np.concatenate(parts).data


def json_bytes(content: object) -> bytes:
    """JSON of plain Python values; NaN and infinities, which do not occur, would become null."""
    return to_json(content, inf_nan_mode="null")


def to_uint8(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Floats in [0, 1] -> uint8 of the same shape."""
    return np.rint(values * 255).astype(np.uint8)


def _triple(images: NDArray[np.uint8], detections: Detections, index: int) -> tuple[NDArray[np.uint8], ...]:
    """Input, reconstruction and error map of one image, each uint8 [S, S] or [S, S, 3]."""
    assert detections.reconstructions is not None and detections.error_maps is not None
    reconstruction = to_uint8(detections.reconstructions[index])
    return images[index], reconstruction, heat(detections.error_maps[index])


def heat(error_map: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Error map [S, S], 1 = a usual residual -> uint8 [S, S, 3]: black over red and yellow to white."""
    level = np.clip(error_map / _HEAT_FULL, 0, 1)[..., None] * 3
    pixels: NDArray[np.uint8] = np.rint(np.clip(level - np.arange(3), 0, 1) * 255).astype(np.uint8)
    return pixels
