"""The model card: what a published version states about itself. `Card` is the content of card.json."""

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Dimension = Annotated[int, Field(ge=1)]
Preparation = Literal["digit", "none"]

PREPROCESSING = "28x28 grey, 0 = background, 255 = ink, scaled to [-1, 1] by x / 127.5 - 1"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Architecture(_Strict):
    """The dimensions of the autoencoder."""

    image_size: Dimension
    hidden: tuple[Dimension, ...]
    latent_dim: Dimension
    variational: bool = False
    parameters: int


class EpochLosses(_Strict):
    """Mean squared error after each epoch; the first entry is the untrained network's."""

    fit: tuple[float, ...] = ()
    test: tuple[float, ...] = ()


class SelfCheck(_Strict):
    """Images that need no data set (made from `seed`), and their scores where the version was made."""

    seed: int
    scores: tuple[float, ...]


class Card(_Strict):
    """Everything that a version states about itself."""

    name: Name
    version: int = Field(ge=1)
    created: str  # ISO 8601, UTC
    architecture: Architecture
    preprocessing: str
    preprocess: Preparation = Field(
        "digit",
        description="What `auto` means for uploads: digit prepares them as the digits of MNIST were, none only resizes them.",
    )
    scorer: str
    alpha: float = Field(gt=0, lt=1)
    threshold: float
    calibration_images: int = Field(ge=1)
    # Calibration of prepared images: on the `own` calibration images, which were prepared, or on `synthesised` uploads.
    uploads: str | None = None
    training: dict[str, Any]  # the training configuration and seed
    data: dict[str, Any]  # the training data, with digests
    libraries: dict[str, str]
    losses: EpochLosses
    metrics: dict[str, Any]  # figures with the data sets they were measured on
    onnx_max_relative_difference: float | None = None  # of a score between ONNX Runtime and torch, over calibration images
    self_check: SelfCheck
    files: dict[str, str]  # sha256 of every other file of the version


def self_check_images(seed: int, size: int, count: int = 16) -> NDArray[np.uint8]:
    """Images [count, size, size] from `seed` alone, the same on every machine: blocks first, then noise.

    RandomState rather than a Generator: numpy guarantees that its stream never changes.
    """
    state = np.random.RandomState(seed)
    noise = state.randint(0, 256, (count, size, size)).astype(np.uint8)
    blocks = noise[:, ::4, ::4].repeat(4, axis=1).repeat(4, axis=2)[:, :size, :size]
    half = count // 2
    return np.concatenate([blocks[:half], noise[half:]])
