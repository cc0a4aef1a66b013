"""Responses of the Open Inference Protocol: detections in, JSON out, with binary data after it where that is requested."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from app.serving.api import responses
from app.serving.api.predict import decide
from app.serving.api.query import JSON, Options
from app.serving.api.responses import Entry
from app.serving.engine.inference import InferenceResult
from app.serving.engine.thread_stage import Deadline
from app.serving.errors import OutOfRange
from app.serving.http.body import BytesResponse
from app.serving.infer_schemas import InferRequest

OCTETS = "application/octet-stream"
HEADER_LENGTH = b"inference-header-content-length"

SCORING_OUTPUTS = frozenset({"score", "p_value", "is_anomaly"})  # a response with one of these has verdicts

_PIECE_NUMBERS = 4096  # of JSON between which other threads can run
_BINARY_DTYPES = {"FP32": "<f4", "FP64": "<f8", "BOOL": "?"}


class Output(NamedTuple):
    """A requested output, and whether it comes as binary data."""

    name: str
    binary: bool


def output_shapes(size: int, latent: int) -> dict[str, tuple[str, list[int]]]:
    """Output name -> datatype and shape; -1 is the number of images."""
    return {
        "score": ("FP32", [-1]),
        "p_value": ("FP64", [-1]),
        "is_anomaly": ("BOOL", [-1]),
        "reconstruction_error": ("FP32", [-1]),
        "embedding": ("FP32", [-1, latent]),
        "reconstruction": ("FP32", [-1, size, size]),
    }


def requested_outputs(request: InferRequest, *, pictures: bool) -> list[Output]:
    """The outputs of a response: all where the request names none. `pictures`: JSON may hold the reconstructions too.

    Raises OutOfRange for an output that is requested twice.
    """
    binary = request.parameters is not None and request.parameters.binary_data_output
    if not request.outputs:
        return [Output(name, binary) for name in output_shapes(0, 0) if name != "reconstruction" or pictures or binary]
    outputs = []
    for output in request.outputs:
        own = output.parameters.binary_data if output.parameters else None
        outputs.append(Output(output.name, binary if own is None else own))
    if len({output.name for output in outputs}) < len(outputs):
        raise OutOfRange("outputs names one output more than once.")
    return outputs


def count_numbers(result: InferenceResult, name: str) -> int:
    """How many numbers an output has."""
    reconstructions = result.detections.reconstructions
    if name == "reconstruction" and reconstructions is not None:
        return reconstructions.size
    return result.detections.embeddings.size if name == "embedding" else len(result.detections.scores)


def requested_alpha(request: InferRequest) -> float | None:
    """The false-alarm rate that a request asks for, None for the model's."""
    return request.parameters.alpha if request.parameters else None


def render_outputs(
    deadline: Deadline | None, request: InferRequest, outputs: Sequence[Output], result: InferenceResult
) -> Response:
    """The response. Raises OutOfRange for an alpha that the calibration cannot give, TimeoutError after the deadline."""
    with_verdicts = any(output.name in SCORING_OUTPUTS for output in outputs)
    card, columns = result.bundle.card, _columns(request, result, with_verdicts=with_verdicts)
    head: Entry = {"model_name": card.name, "model_version": str(card.version)}
    if request.id is not None:
        head["id"] = request.id
    pieces, blobs = [responses.json_bytes(head)[:-1], b',"outputs":['], []
    for output in outputs:
        values = columns[output.name]
        datatype, _ = output_shapes(0, 0)[output.name]
        entry: Entry = {"name": output.name, "datatype": datatype, "shape": list(values.shape)}
        if output.binary:
            blobs.append(np.ascontiguousarray(values, _BINARY_DTYPES[datatype]))
            pieces += (responses.json_bytes({**entry, "parameters": {"binary_data_size": blobs[-1].nbytes}}), b",")
        else:
            pieces += (responses.json_bytes(entry)[:-1], b',"data":[', *_json_numbers(deadline, values), b"]}", b",")
    pieces[-1] = b"]}"  # in place of the last comma
    text = b"".join(pieces)  # at once: other threads can run meanwhile
    response = BytesResponse(responses.join_arrays(text, blobs) if blobs else text, OCTETS if blobs else JSON)
    if blobs:
        response.raw_headers.append((HEADER_LENGTH, b"%d" % len(text)))
    anomalies = int(np.count_nonzero(columns["is_anomaly"])) if with_verdicts else None
    response.raw_headers.append(responses.result_header(len(columns["score"]), anomalies))
    return response


def _columns(request: InferRequest, result: InferenceResult, *, with_verdicts: bool) -> dict[str, NDArray[Any]]:
    """Output name -> values for each image."""
    detections = result.detections
    columns: dict[str, NDArray[Any]] = {
        "score": detections.scores,
        "p_value": detections.p_values,
        "reconstruction_error": detections.reconstruction_errors,
        "embedding": detections.embeddings,
    }
    if with_verdicts:
        columns["is_anomaly"] = detections.p_values <= decide(result, Options(alpha=requested_alpha(request))).alpha
    if detections.reconstructions is not None:
        columns["reconstruction"] = detections.reconstructions
    return columns


def _json_numbers(deadline: Deadline | None, values: NDArray[Any]) -> list[bytes]:
    """The values in row-major order and the commas between them, in pieces."""
    flat, pieces = values.ravel(), list[bytes]()
    for start in range(0, flat.size, _PIECE_NUMBERS):
        if deadline is not None:
            deadline.check()
        pieces += (responses.json_bytes(flat[start : start + _PIECE_NUMBERS].tolist())[1:-1], b",")
    return pieces[:-1]
