"""A bundle: everything a detector is made of, and the card that tells where it came from. Knows no file.

`Card` is the content of a version's card.json.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from app.detection.conformal import Calibration
from app.detection.upload_scorer import QuantileMap
from app.network.autoencoder import Autoencoder, ModelConfig
from app.network.scoring import Scorer

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]

PREPROCESSING = "28x28 grey, 0 = background, 255 = ink, scaled to [-1, 1] by x / 127.5 - 1"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Architecture(_Strict):
    image_size: int
    hidden: tuple[int, ...]
    latent_dim: int
    parameters: int

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(image_size=self.image_size, hidden=self.hidden, latent_dim=self.latent_dim)

    @classmethod
    def of(cls, model: Autoencoder) -> "Architecture":
        config = model.config
        parameters = sum(weight.numel() for weight in model.parameters())
        return cls(image_size=config.image_size, hidden=config.hidden, latent_dim=config.latent_dim, parameters=parameters)


class EpochLosses(_Strict):
    """Mean squared error after each epoch; the first entry is the untrained network's."""

    fit: tuple[float, ...] = ()
    test: tuple[float, ...] = ()


class SelfCheck(_Strict):
    """Images that need no data set (made from `seed`), and the scores they had where the bundle was made."""

    seed: int
    scores: tuple[float, ...]


class Card(_Strict):
    """What a version says of itself."""

    name: Name
    version: int = Field(ge=1)
    created: str  # ISO 8601, UTC
    architecture: Architecture
    preprocessing: str
    scorer: str
    alpha: float = Field(gt=0, lt=1)
    threshold: float
    calibration_images: int = Field(ge=1)
    uploads: str | None = None  # what scores of prepared uploads were calibrated on: `own` uploads or `synthesised` ones
    training: dict[str, Any]  # the training configuration and seed
    data: dict[str, Any]  # what it was trained on, with digests
    libraries: dict[str, str]
    losses: EpochLosses
    metrics: dict[str, Any]  # figures with the data sets they were measured on
    self_check: SelfCheck
    files: dict[str, str]  # sha256 of every other file of the version


@dataclass(frozen=True)
class Bundle:
    """A trained network, its fitted scorer, its calibration and its card."""

    model: Autoencoder
    scorer: Scorer
    calibration: Calibration
    card: Card
    uploads: QuantileMap | None = None  # None: prepared uploads are scored as if they had been untouched
    folder: Path | None = None  # where it was loaded from

    @property
    def label(self) -> str:
        """`mnist/1`, as it is named in the store, in logs and on screens."""
        return f"{self.card.name}/{self.card.version}"


def self_check_images(seed: int, size: int, count: int = 16) -> NDArray[np.uint8]:
    """Images [count, size, size] from `seed` alone, the same on every machine: blocks first, then noise.

    RandomState rather than a Generator: numpy guarantees its stream never changes.
    """
    state = np.random.RandomState(seed)
    noise = state.randint(0, 256, (count, size, size)).astype(np.uint8)
    blocks = noise[:, ::4, ::4].repeat(4, axis=1).repeat(4, axis=2)[:, :size, :size]
    half = count // 2
    return np.concatenate([blocks[:half], noise[half:]])
