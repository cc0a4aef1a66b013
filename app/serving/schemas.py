"""The HTTP contract as pydantic models: the bodies of requests and responses.

Those of the Open Inference Protocol are in infer_schemas.py. The hot endpoints build the same fields without these models, for
speed; tests compare the two.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, FailFast, Field

from app.detection.model_card import Card, Preparation

Finite = Annotated[float, Field(allow_inf_nan=False)]
Picture = Annotated[str, Field(description="A 28x28 PNG, base64.", json_schema_extra={"contentEncoding": "base64"})]

LEAST_RATE = 1e-9  # of false alarms; no calibration is large enough for less


class ResponsePart(BaseModel):
    """A response or a part of one: it has no other fields than its own."""

    model_config = ConfigDict(extra="forbid")


class Problem(ResponsePart):
    """An error in the form of RFC 9457."""

    type: str = Field(examples=["/problems/undecodable-image"])
    title: str
    status: int = Field(ge=400, le=599)
    detail: str
    instance: str = Field(description="The path of the request.")
    request_id: str


class Model(ResponsePart):
    """The detector that answered."""

    name: str = Field(examples=["mnist"])
    version: int = Field(ge=1)


class FailedImage(ResponsePart):
    """An image that could not be decoded, in a request with others that could."""

    name: str
    error: Problem


class _Result(ResponsePart):
    name: str = Field(description="The file's name; an array's image has its index.")
    preprocess: list[str] = Field(description="The preparation steps that were applied to the upload.")
    warnings: list[str] = Field(description="Quality problems of the upload.")


class Score(_Result):
    """The verdict on one image: `is_anomaly` is `p_value <= alpha`, which without `fdr` is the same as `score > threshold`.

    With `fdr`, an image whose kind has few calibration images may score above the threshold without being an anomaly.
    """

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


class _Decision(ResponsePart):
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


class EmbedResponse(ResponsePart):
    """Response of /embed; the results have the order of the upload."""

    model: Model
    results: list[Embedding | FailedImage]


class ReconstructResponse(ResponsePart):
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


class DecodeResponse(ResponsePart):
    """Response of /decode: one picture for each point."""

    model: Model
    images: list[Picture]


class Latent(ResponsePart):
    """Test images in the latent plane, with their labels: every k-th one, at most 2,000, rounded to three decimals."""

    embedding: list[list[Finite]]
    labels: list[int]


class RefusedVersion(ResponsePart):
    """A version of the store that must not be served, with the reason."""

    model: str
    version: int
    reason: str


class ServedModel(ResponsePart):
    """A model in service."""

    name: str = Field(examples=["mnist"])
    version: int = Field(ge=1)
    stored_versions: list[int] = Field(description="All versions in the store when it was last read, ascending.")
    scorer: str
    preprocess: Preparation = Field(description="What preprocess=auto means: none only resizes uploads.")
    alpha: float = Field(gt=0, lt=1, description="The model's own false-alarm rate.")
    latent_dim: int = Field(ge=1, description="Number of coordinates of an embedding.")
    device: str = Field(examples=["cpu"])
    runtime: str = Field(examples=["onnx"])


class ModelList(ResponsePart):
    """Response of /models: the models in service, the default first."""

    default: str = Field(description="The model that answers where a request names none.")
    memory_bytes: int | None = Field(description="Resident memory of this process with all models; null where unknown.")
    models: list[ServedModel]


class Readiness(ResponsePart):
    """Response of /readyz."""

    status: str = Field(examples=["ready"])
    model: Model
    device: str
    refused_versions: list[RefusedVersion]


class Drift(ResponsePart):
    """Response of /drift: evidence that the traffic differs from the calibration images."""

    model: Model
    images: int = Field(description="Images with verdicts since the model went into service.")
    capital: Finite = Field(ge=0, description="Current capital of the test martingale, which starts at 0.9.")
    highest: Finite = Field(ge=0, description="Highest capital so far.")
    level: Finite = Field(description="Alarm level; normal traffic reaches it with a probability of at most 1 / level, ever.")
    drifting: bool
    since: int | None = Field(description="Number of images at which the level was reached.")


class Liveness(ResponsePart):
    """Response of /livez."""

    status: str = Field(examples=["alive"])


class ModelCard(Card):
    """Response of /model: the card of the model in service and its device."""

    device: str = Field(examples=["cuda:0"])
