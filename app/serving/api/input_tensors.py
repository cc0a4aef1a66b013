"""Requests of the Open Inference Protocol: a body in, uint8 images or image files out.

A tensor's elements stand in the JSON, or after it as binary data. Source: Triton's binary tensor data extension,
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md.
"""

import base64
import binascii
import math
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from app.detection.imaging.centring import centre_images
from app.detection.imaging.decode import choose_preprocess
from app.detection.model_card import Preparation
from app.serving.api.json_numbers import cut_data, parse_in_pieces
from app.serving.engine.thread_stage import Deadline
from app.serving.errors import BadRequest, InvalidJson, OutOfRange, TooLarge, from_validation_error
from app.serving.infer_schemas import InferInput, InferRequest

DTYPES = {
    "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4",
    "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
_CHUNK_IMAGES = 1024  # that are converted between two looks at the deadline
_MAX_DIGITS = 10  # of a length
_LENGTH_BYTES = 4  # before each element of a binary BYTES tensor
_NUMBER_CHARACTERS = b"0123456789+-.eE,[] \t\r\n"  # of JSON lists of numbers
_FEW_LISTS = 100_000
_MAX_COMMAS = 16_384  # in the JSON beside the numbers, which is parsed in one call: 2 ms


class TensorLimits(NamedTuple):
    """The size and the preparation of the model's images, and the most images of a request, as pixels and as files."""

    size: int
    images: int
    files: int
    preprocess: Preparation = "digit"


class InferInputs(NamedTuple):
    """A request and its images: uint8 [N, S, S], or image files."""

    request: InferRequest
    images: NDArray[np.uint8] | None
    files: list[bytes]


def split_body(body: bytes, header_length: bytes | None) -> tuple[bytes, memoryview]:
    """The JSON of a body and the binary data after it. `header_length`: the value of Inference-Header-Content-Length."""
    if header_length is None:
        return body, memoryview(b"")
    if not header_length.isdigit() or len(header_length) > _MAX_DIGITS or int(header_length) > len(body):
        raise BadRequest("Inference-Header-Content-Length is not the length of the JSON at the start of the body.")
    return body[: int(header_length)], memoryview(body)[int(header_length) :]


def read_inputs(deadline: Deadline | None, text: bytes, binary: memoryview, limits: TensorLimits) -> InferInputs:
    """The request in the JSON `text`, and its images. Raises BadRequest, InvalidJson, OutOfRange, TooLarge or TimeoutError."""
    # An empty list in 3 bytes of JSON takes 56 bytes of memory. Each pixel of a few images may be a list.
    if text.count(b"[") + text.count(b"{") > _FEW_LISTS + len(text) // 16:
        raise BadRequest("The body has more nested lists than images need.")
    text, array = cut_data(text)
    if text.count(b",") > _MAX_COMMAS:
        raise BadRequest("The body has too much JSON that is not an array of numbers in data.")
    try:
        request = InferRequest.model_validate_json(text)
    except ValidationError as error:
        raise from_validation_error(error) from None
    tensor = request.inputs[0]
    if array is not None and tensor.data not in (None, [0]):  # a key may be written with escapes
        raise OutOfRange("The request has another array named data than that of its input.")
    if (tensor.data is None) == (tensor.parameters is None or tensor.parameters.binary_data_size is None):
        raise OutOfRange("The input needs data, or binary data whose length is its parameter binary_data_size.")
    if tensor.parameters and tensor.parameters.binary_data_size not in (None, len(binary)):
        raise OutOfRange(f"binary_data_size is not the length of the binary data: {len(binary):,} bytes.")
    if tensor.datatype == "BYTES":
        return InferInputs(request, None, _read_files(tensor, binary, limits))
    count = _count_images(tensor.shape, limits)
    values = _binary_numbers(tensor, binary) if tensor.data is None else _json_numbers(deadline, tensor, array)
    asked = request.parameters.preprocess if request.parameters else "auto"
    centre = choose_preprocess(asked, limits.preprocess) != "none"
    return InferInputs(request, _to_images(deadline, values, tensor, (count, limits.size, limits.size), centre=centre), [])


def _count_images(shape: list[int], limits: TensorLimits) -> int:
    """The number of images in a tensor of this shape. Raises OutOfRange or TooLarge."""
    size = limits.size
    one = ([size, size], [size * size], [1, size, size], [size, size, 1])
    if shape not in one and shape[1:] not in one:
        raise OutOfRange(
            f"shape must be [N, {size}, {size}], [N, {size * size}], [N, 1, {size}, {size}] or [N, {size}, {size}, 1]."
        )
    count = math.prod(shape) // size**2
    if count > limits.images:
        raise TooLarge(f"{count:,} images in one tensor; at most {limits.images:,} are accepted.")
    return count


def _binary_numbers(tensor: InferInput, binary: memoryview) -> NDArray[Any]:
    dtype = np.dtype(DTYPES[tensor.datatype])
    if len(binary) != math.prod(tensor.shape) * dtype.itemsize:
        raise OutOfRange("The length of the binary data, datatype and shape do not agree.")
    return np.frombuffer(binary, dtype)


def _json_numbers(deadline: Deadline | None, tensor: InferInput, array: bytes | None) -> NDArray[Any]:
    """The elements of a tensor whose data are in the JSON: as uint8, or as float64 for floats."""
    pieces: Iterable[tuple[bytes | None, list[Any]]] = [(None, tensor.data or [])] if array is None else parse_in_pieces(array)
    parts, first, rows = [], [0], 0
    try:
        for text, elements in pieces:
            if deadline is not None:
                deadline.check()
            numbers, shape = _flatten(elements)
            parts.append(_convert(text, numbers, tensor))
            rows += shape[0]
            first = shape if rows == shape[0] else first
            if shape[1:] != first[1:]:
                raise OutOfRange("data must be one list, or lists of equal lengths.")
    except (ValueError, OverflowError):
        raise InvalidJson("data cannot be read.") from None
    values = np.concatenate(parts)
    if values.size != math.prod(tensor.shape) or (len(first) > 1 and [rows, *first[1:]] != tensor.shape):
        raise OutOfRange("data and shape do not agree.")
    return values


def _convert(text: bytes | None, numbers: list[Any], tensor: InferInput) -> NDArray[Any]:
    """Numbers as uint8 or float64; `text` is the JSON that they were read from, if it is known.

    Raises OutOfRange, also for elements that are not numbers, and OverflowError.
    """
    are_floats = tensor.datatype.startswith("FP")
    # The characters tell sooner than the types whether all elements are numbers: null, true and "1" have others.
    has_only_numbers = text is not None and not text.translate(None, _NUMBER_CHARACTERS)
    if numbers and (has_only_numbers or set(map(type, numbers)) <= {int, float}):
        with suppress(ValueError, TypeError):  # a list among the numbers, or a number that is not a pixel's
            return np.array(numbers, np.float64) if are_floats else np.frombuffer(bytes(numbers), np.uint8)
    kind = "numbers" if are_floats else "whole numbers from 0 to 255"
    raise OutOfRange(f"data must hold {kind}, in one list or in lists of equal lengths.")


def _flatten(data: list[Any]) -> tuple[list[Any], list[int]]:
    """Flatten nested lists of equal lengths; returns the elements and the shape. Unequal lengths give no elements.

    numpy.array is not safe here: for a list with one long string it allocates that length for every element.
    """
    shape = [len(data)]
    while data and type(data[0]) is list and set(map(type, data)) == {list}:
        lengths = set(map(len, data))
        if len(lengths) > 1:
            return [], shape
        shape.append(lengths.pop())
        data = list(chain.from_iterable(data))
    return data, shape


def _to_images(
    deadline: Deadline | None, values: NDArray[Any], tensor: InferInput, shape: tuple[int, int, int], *, centre: bool
) -> NDArray[np.uint8]:
    """Numbers -> uint8 images [N, S, S], centred as those of an array are. Raises OutOfRange."""
    scale = (tensor.parameters.float_max if tensor.parameters else 1) if tensor.datatype.startswith("FP") else 255
    values, chunks = values.reshape(shape), []
    for start in range(0, len(values), _CHUNK_IMAGES):
        if deadline is not None:
            deadline.check()
        images = _to_uint8(values[start : start + _CHUNK_IMAGES], scale)
        chunks.append(centre_images(images)[0] if centre else images)
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def _to_uint8(values: NDArray[Any], scale: int) -> NDArray[np.uint8]:
    """Numbers from 0 to `scale` -> uint8 of the same shape. Raises OutOfRange."""
    if values.dtype == np.uint8:
        return values
    if not (values.min() >= 0 and values.max() <= scale):  # NaN is neither
        other = "" if scale == 255 else "; send the input's parameter float_max as 255 for values up to 255"
        raise OutOfRange(f"The values must lie between 0 and {scale}{other}.")
    if values.dtype.kind == "f":
        values = np.rint(values.astype(np.float32) * np.float32(255 / scale))
    return values.astype(np.uint8)


def _read_files(tensor: InferInput, binary: memoryview, limits: TensorLimits) -> list[bytes]:
    """The elements of a BYTES tensor: image files. Raises OutOfRange or TooLarge."""
    count = math.prod(tensor.shape)
    if count > limits.files:
        raise TooLarge(f"{count:,} image files in one tensor; at most {limits.files:,} are accepted.")
    files = _split_elements(binary, count) if tensor.data is None else _decode_base64(tensor.data)
    if len(files) != count:
        raise OutOfRange("data and shape do not agree.")
    return files


def _split_elements(binary: memoryview, count: int) -> list[bytes]:
    """The elements of a binary BYTES tensor, each after its length of four bytes, little-endian."""
    files, position = [], 0
    for _ in range(count):
        start = position + _LENGTH_BYTES
        position = start + int.from_bytes(binary[position:start], "little")
        files.append(bytes(binary[start:position]))
    if position != len(binary):
        raise OutOfRange("The binary data are not as many elements as shape says, each after its length of four bytes.")
    return files


def _decode_base64(data: list[Any]) -> list[bytes]:
    elements, _ = _flatten(data)
    try:
        return [base64.b64decode(element, validate=True) for element in elements]
    except (TypeError, ValueError, binascii.Error):
        raise OutOfRange("data must hold image files in base64.") from None
