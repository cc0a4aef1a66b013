"""The HTTP contract as pydantic models: what answers hold. Readable alone; the routes build the same fields by hand."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.detection.bundle import Card

Finite = Annotated[float, Field(allow_inf_nan=False)]
Picture = Annotated[str, Field(description="A 28x28 PNG, base64.", json_schema_extra={"contentEncoding": "base64"})]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Problem(_Answer):
    """An error, as RFC 9457 has it."""

    type: str = Field(examples=["/problems/undecodable-image"])
    title: str
    status: int = Field(ge=400, le=599)
    detail: str
    instance: str = Field(description="The path that was asked for.")
    request_id: str


class Model(_Answer):
    """The detector that answered."""

    name: str = Field(examples=["mnist"])
    version: int = Field(ge=1)


class Failed(_Answer):
    """An image that could not be read, among others that could."""

    name: str
    error: Problem


class _Result(_Answer):
    name: str = Field(description="The file's name; an array's image has its index.")
    preprocess: list[str] = Field(description="What was done to the upload before the network saw it.")
    warnings: list[str] = Field(description="What is suspicious about the upload.")


class Score(_Result):
    """How odd an image is. `score > threshold`, `p_value <= alpha` and `is_anomaly` always agree."""

    score: Finite = Field(description="Higher is more anomalous.")
    p_value: float = Field(gt=0, le=1, description="Share of normal images that score at least this high.")
    is_anomaly: bool
    reconstruction_error: Finite = Field(ge=0, description="Mean squared residual over the pixels, in [-1, 1] units.")


class Embedding(_Result):
    """Where an image lies in the latent plane."""

    embedding: list[Finite]


class Reconstruction(_Result):
    """What the network saw, what it made of it, and where the two differ."""

    input: Picture
    reconstruction: Picture
    error_map: Picture


class ScoreAnswer(_Answer):
    """The answer of /score, in the order of the upload."""

    model: Model
    alpha: float = Field(gt=0, lt=1, description="The false-alarm rate that the threshold is for.")
    threshold: Finite
    fdr: float | None = Field(
        None, gt=0, lt=1, description="The false discovery rate asked for, where one was; alpha and threshold follow from it."
    )
    results: list[Score | Failed]


class EmbedAnswer(_Answer):
    """The answer of /embed."""

    model: Model
    results: list[Embedding | Failed]


class ReconstructAnswer(_Answer):
    """The answer of /reconstruct."""

    model: Model
    results: list[Reconstruction | Failed]


FAR = 1e6  # latent coordinates beyond this say nothing and overflow in float32


class DecodeRequest(BaseModel):
    """Points of the latent plane."""

    model_config = ConfigDict(extra="forbid", strict=True)

    embedding: list[list[Annotated[float, Field(ge=-FAR, le=FAR)]]] = Field(min_length=1, max_length=1024)


class DecodeAnswer(_Answer):
    """What the network draws at those points."""

    model: Model
    images: list[Picture]


class Latent(_Answer):
    """The test images in the latent plane, with their labels."""

    embedding: list[list[Finite]]
    labels: list[int]


class RefusedVersion(_Answer):
    """A version of the store that is not served, and why."""

    version: int
    reason: str


class Readiness(_Answer):
    """Whether the server answers questions now."""

    status: str = Field(examples=["ready"])
    model: Model
    device: str
    refused_versions: list[RefusedVersion]


class Drift(_Answer):
    """Evidence that the traffic is not what the model was calibrated for."""

    model: Model
    images: int = Field(description="Images seen since the model was put in service.")
    capital: Finite = Field(ge=0, description="Of a player who bets against normal traffic, begun at 1.")
    highest: Finite = Field(ge=0, description="The highest it has been.")
    level: Finite = Field(description="Reaching it is called drift; normal traffic ever does with probability 1 / level.")
    drifting: bool
    since: int | None = Field(description="How many images it took.")


class Liveness(_Answer):
    """That the process runs."""

    status: str = Field(examples=["alive"])


class InferError(_Answer):
    """An error, as the Open Inference Protocol has it."""

    error: str


class InferServer(_Answer):
    """What server this is."""

    name: str
    version: str
    extensions: list[str]


class InferLive(_Answer):
    """That the process runs."""

    live: bool


class InferReady(_Answer):
    """That questions are answered."""

    ready: bool


class InferModelReady(InferReady):
    """That this model's questions are."""

    name: str


class InferTensor(_Answer):
    """A tensor that goes in or comes out; -1 stands for any number."""

    name: str
    datatype: str
    shape: list[int]


class InferModel(_Answer):
    """A model's name, versions, inputs and outputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[InferTensor]
    outputs: list[InferTensor]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)  # the protocol leaves room for parameters of others


class InferParameters(_Asked):
    """Of these only alpha is known here."""

    alpha: float | None = Field(None, description="False-alarm rate to judge by; unset, the model's own.")


class InferInput(_Asked):
    """The images, as a tensor of whole numbers from 0 (background) to 255 (ink)."""

    name: Literal["images"]
    shape: list[Annotated[int, Field(ge=1)]] = Field(min_length=2, max_length=4, description="[N, 28, 28] or [N, 784].")
    datatype: Literal["UINT8"]
    data: list[Any] = Field(min_length=1, description="The numbers, row by row, in one list or in nested ones.")


class InferOutput(_Asked):
    """An output that is wanted."""

    name: Literal["score", "p_value", "is_anomaly", "reconstruction_error", "embedding", "reconstruction"]


class InferRequest(_Asked):
    """Images, and what is wanted of them; all but the reconstruction where nothing is named."""

    id: str | None = Field(None, max_length=256)
    parameters: InferParameters | None = None
    inputs: list[InferInput] = Field(min_length=1, max_length=1)
    outputs: list[InferOutput] | None = Field(None, max_length=16)


class InferResult(InferTensor):
    """A tensor and its numbers, row by row."""

    data: list[bool | Finite]


class InferAnswer(_Answer):
    """What the detector says of the images, in their order."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[InferResult]


class ModelCard(Card):
    """The card of the model in service, and the device it runs on."""

    device: str = Field(examples=["cuda:0"])
