"""The contract of the Open Inference Protocol (/v2) as pydantic models: the bodies of requests and responses."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from app.detection.imaging.decode import Preprocess
from app.serving.schemas import LEAST_RATE, Finite, ResponsePart


class InferError(ResponsePart):
    """An error in the form of the Open Inference Protocol."""

    error: str


class InferServer(ResponsePart):
    """Server metadata."""

    name: str
    version: str
    extensions: list[str]


class InferLive(ResponsePart):
    """Liveness of the server."""

    live: bool


class InferReady(ResponsePart):
    """Readiness of the server."""

    ready: bool


class InferModelReady(InferReady):
    """Readiness of a model."""

    name: str


class InferTensor(ResponsePart):
    """Name, datatype and shape of a tensor; -1 is a dimension of any size."""

    name: str
    datatype: str
    shape: list[int]


class InferInputMetadata(InferTensor):
    """The input of a model; its parameters say which other datatypes it takes, and the value of ink in each."""

    parameters: dict[str, str | int]


class InferModel(ResponsePart):
    """Model metadata."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[InferInputMetadata]
    outputs: list[InferTensor]


class InferConfigTensor(ResponsePart):
    """A tensor in a model's configuration; -1 is a dimension of any size."""

    name: str
    data_type: str = Field(examples=["TYPE_UINT8"])
    dims: list[int]


class InferModelConfig(ResponsePart):
    """A model's configuration, as far as clients of Triton need it; `dims` include the number of images."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[InferConfigTensor]
    output: list[InferConfigTensor]


class InferRepositoryModel(ResponsePart):
    """A model in service, in the index of the repository."""

    name: str
    version: str
    state: Literal["READY"]
    reason: str


class _RequestPart(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)  # the protocol allows parameters of other servers


class InferParameters(_RequestPart):
    """Parameters of the request; unknown ones are ignored."""

    alpha: float | None = Field(None, ge=LEAST_RATE, lt=1, description="False-alarm rate; default: the model's own.")
    preprocess: Preprocess = Field("auto", description="As of /score: none leaves images that lie off the middle there.")
    binary_data_output: bool = Field(False, description="Return the outputs as binary data after the JSON.")


class InferInputParameters(_RequestPart):
    """Parameters of the input; unknown ones are ignored."""

    binary_data_size: int | None = Field(None, ge=0, description="Bytes of this tensor after the JSON, instead of `data`.")
    float_max: Literal[1, 255] = Field(1, description="The value of ink in floating-point tensors.")


Datatype = Literal["UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"]


class InferInput(_RequestPart):
    """The images as a tensor, 0 = background: integers to 255, floats to 1, or BYTES with one image file each."""

    name: str = Field(max_length=256, examples=["images"], description="Any name; there is one input.")
    shape: list[Annotated[int, Field(ge=1, lt=2**31)]] = Field(
        min_length=1,
        max_length=4,
        description="[N, 28, 28], [N, 784], [N, 1, 28, 28], [N, 28, 28, 1] or one image; BYTES: [N].",
    )
    datatype: Datatype = Field(examples=["UINT8"])
    parameters: InferInputParameters | None = None
    data: list[Any] | None = Field(
        None, description="The elements in row-major order, in one list or in nested lists; image files in base64."
    )


class RequestedOutputParameters(_RequestPart):
    """Parameters of a requested output; unknown ones are ignored."""

    binary_data: bool | None = Field(None, description="Return this output as binary data after the JSON, or in the JSON.")


class RequestedOutput(_RequestPart):
    """A requested output."""

    name: Literal["score", "p_value", "is_anomaly", "reconstruction_error", "embedding", "reconstruction"]
    parameters: RequestedOutputParameters | None = None


_ONE = "iVBORw0KGgoAAAANSUhEUgAAABwAAAAcAQAAAABaduI5AAAAFUlEQVR42mNgwAb4GBiYGBhoSWADABFkADURF4LxAAAAAElFTkSuQmCC"  # a PNG
_EXAMPLE: JsonDict = {"inputs": [{"name": "images", "datatype": "BYTES", "shape": [1], "data": [_ONE]}]}


class InferRequest(_RequestPart):
    """Inference request.

    Without `outputs`, the response holds all outputs; in JSON, `reconstruction` only for at most ODDIGIT_MAX_PICTURES images.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    id: str | None = Field(None, max_length=256)
    parameters: InferParameters | None = None
    inputs: list[InferInput] = Field(min_length=1, max_length=1)
    outputs: list[RequestedOutput] | None = Field(None, max_length=16)


class InferOutputTensor(InferTensor):
    """A tensor with its values in row-major order, or with the size of its binary data after the JSON."""

    parameters: dict[str, int] | None = None
    data: list[bool | Finite] | None = None


class InferResponse(ResponsePart):
    """Inference response; every output has the order of the images."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[InferOutputTensor]
