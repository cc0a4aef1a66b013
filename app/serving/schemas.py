"""The HTTP contract as pydantic models: the bodies of requests and responses.

The hot endpoints build the same fields without these models, for speed; tests compare the two.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field

from app.detection.model_card import Card

Finite = Annotated[float, Field(allow_inf_nan=False)]
Picture = Annotated[str, Field(description="A 28x28 PNG, base64.", json_schema_extra={"contentEncoding": "base64"})]


class _ResponsePart(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Problem(_ResponsePart):
    """An error in the form of RFC 9457."""

    type: str = Field(examples=["/problems/undecodable-image"])
    title: str
    status: int = Field(ge=400, le=599)
    detail: str
    instance: str = Field(description="The path of the request.")
    request_id: str


class Model(_ResponsePart):
    """The detector that answered."""

    name: str = Field(examples=["mnist"])
    version: int = Field(ge=1)


class FailedImage(_ResponsePart):
    """An image that could not be decoded, in a request with others that could."""

    name: str
    error: Problem


class _Result(_ResponsePart):
    name: str = Field(description="The file's name; an array's image has its index.")
    preprocess: list[str] = Field(description="The preparation steps that were applied to the upload.")
    warnings: list[str] = Field(description="Quality problems of the upload.")


class Score(_Result):
    """The verdict on one image. `score > threshold`, `p_value <= alpha` and `is_anomaly` always agree."""

    score: Finite = Field(description="Higher is more anomalous.")
    p_value: float = Field(gt=0, le=1, description="Share of normal images that score at least this high.")
    is_anomaly: bool
    reconstruction_error: Finite = Field(ge=0, description="Mean squared residual over the pixels, in [-1, 1] units.")


class Embedding(_Result):
    """The coordinates of one image in the latent plane."""

    embedding: list[Finite]


class Reconstruction(_Result):
    """The network's input, its reconstruction, and the difference of the two in each pixel."""

    input: Picture
    reconstruction: Picture
    error_map: Picture


class Inspection(Reconstruction, Embedding, Score):
    """The verdict on one image, its place in the latent plane, and its pictures."""


class _Decision(_ResponsePart):
    model: Model
    alpha: float = Field(gt=0, lt=1, description="The false-alarm rate that the threshold is for.")
    threshold: Finite
    fdr: float | None = Field(None, gt=0, lt=1, description="The requested false discovery rate; sets alpha and threshold.")


class ScoreResponse(_Decision):
    """Response of /score; the results have the order of the upload."""

    results: list[Score | FailedImage]


class InspectResponse(_Decision):
    """Response of /inspect; the results have the order of the upload."""

    results: list[Inspection | FailedImage]


class EmbedResponse(_ResponsePart):
    """Response of /embed; the results have the order of the upload."""

    model: Model
    results: list[Embedding | FailedImage]


class ReconstructResponse(_ResponsePart):
    """Response of /reconstruct; the results have the order of the upload."""

    model: Model
    results: list[Reconstruction | FailedImage]


MAX_COORDINATE = 1e6  # larger latent coordinates overflow in float32
MAX_POINTS = 1024  # in one request of /decode

Point = Annotated[
    list[Annotated[float, Field(ge=-MAX_COORDINATE, le=MAX_COORDINATE)]],
    Field(min_length=1),
    FailFast(),  # the endpoint checks that there are as many as the model has dimensions
]


class DecodeRequest(BaseModel):
    """Request of /decode: points of the latent plane."""

    model_config = ConfigDict(extra="forbid", strict=True)

    embedding: Annotated[list[Point], FailFast()] = Field(min_length=1, max_length=MAX_POINTS, examples=[[[0.5, -1.0]]])


class DecodeResponse(_ResponsePart):
    """Response of /decode: one picture for each point."""

    model: Model
    images: list[Picture]


class Latent(_ResponsePart):
    """Test images in the latent plane, with their labels: every k-th one, at most 2,000, rounded to three decimals."""

    embedding: list[list[Finite]]
    labels: list[int]


class RefusedVersion(_ResponsePart):
    """A version of the store that must not be served, with the reason."""

    model: str
    version: int
    reason: str


class ServedModel(_ResponsePart):
    """A model in service."""

    name: str = Field(examples=["mnist"])
    version: int = Field(ge=1)
    scorer: str
    alpha: float = Field(gt=0, lt=1, description="The model's own false-alarm rate.")
    latent_dim: int = Field(ge=1, description="Number of coordinates of an embedding.")
    device: str = Field(examples=["cpu"])
    runtime: str = Field(examples=["onnx"])


class ModelList(_ResponsePart):
    """Response of /models: the models in service, the default first."""

    default: str = Field(description="The model that answers where a request names none.")
    memory_bytes: int | None = Field(description="Resident memory of this process with all models; null where unknown.")
    models: list[ServedModel]


class Readiness(_ResponsePart):
    """Response of /readyz."""

    status: str = Field(examples=["ready"])
    model: Model
    device: str
    refused_versions: list[RefusedVersion]


class Drift(_ResponsePart):
    """Response of /drift: evidence that the traffic differs from the calibration images."""

    model: Model
    images: int = Field(description="Images with verdicts since the model went into service.")
    capital: Finite = Field(ge=0, description="Current capital of the test martingale, which starts at 0.9.")
    highest: Finite = Field(ge=0, description="Highest capital so far.")
    level: Finite = Field(description="Alarm level; normal traffic reaches it with a probability of at most 1 / level, ever.")
    drifting: bool
    since: int | None = Field(description="Number of images at which the level was reached.")


class Liveness(_ResponsePart):
    """Response of /livez."""

    status: str = Field(examples=["alive"])


class InferError(_ResponsePart):
    """An error in the form of the Open Inference Protocol."""

    error: str


class InferServer(_ResponsePart):
    """Server metadata."""

    name: str
    version: str
    extensions: list[str]


class InferLive(_ResponsePart):
    """Liveness of the server."""

    live: bool


class InferReady(_ResponsePart):
    """Readiness of the server."""

    ready: bool


class InferModelReady(InferReady):
    """Readiness of a model."""

    name: str


class InferTensor(_ResponsePart):
    """Name, datatype and shape of a tensor; -1 is a dimension of any size."""

    name: str
    datatype: str
    shape: list[int]


class InferModel(_ResponsePart):
    """Model metadata."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[InferTensor]
    outputs: list[InferTensor]


class _RequestPart(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)  # the protocol allows parameters of other servers


class InferParameters(_RequestPart):
    """Parameters of the request; other parameters than alpha are ignored."""

    alpha: float | None = Field(None, description="False-alarm rate; default: the model's own.")


class InferInput(_RequestPart):
    """The images as a tensor of integers from 0 (background) to 255 (ink)."""

    name: Literal["images"]
    shape: list[Annotated[int, Field(ge=1)]] = Field(min_length=2, max_length=4, description="[N, 28, 28] or [N, 784].")
    datatype: Literal["UINT8"]
    data: list[Any] = Field(min_length=1, description="The integers in row-major order, in one list or in nested lists.")


class RequestedOutput(_RequestPart):
    """A requested output."""

    name: Literal["score", "p_value", "is_anomaly", "reconstruction_error", "embedding", "reconstruction"]


class InferRequest(_RequestPart):
    """Inference request. Without `outputs`, the response holds all outputs except the reconstruction."""

    id: str | None = Field(None, max_length=256)
    parameters: InferParameters | None = None
    inputs: list[InferInput] = Field(min_length=1, max_length=1)
    outputs: list[RequestedOutput] | None = Field(None, max_length=16)


class InferOutputTensor(InferTensor):
    """A tensor with its values in row-major order."""

    data: list[bool | Finite]


class InferResponse(_ResponsePart):
    """Inference response; every output has the order of the images."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[InferOutputTensor]


class ModelCard(Card):
    """Response of /model: the card of the model in service and its device."""

    device: str = Field(examples=["cuda:0"])
