"""The configuration of a training: one frozen dataclass, validated when it is made."""

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from app.detection.imaging.decode import Preprocess

ScorerName = Literal["residual", "mse"]  # of the scorers in app/network/detector_network.py

ALPHA = 0.01  # default false-alarm rate
CALIBRATION_SHARE = 1 / 3  # of MNIST's 60,000 training images: 40,000 fit, 20,000 calibrate

_LOCAL_PATHS = {"data_dir", "root"}  # paths of this machine: neither in the card nor in the digest


class TrainingError(RuntimeError):
    """The training cannot start or go on; the message says what to change."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the result of a training. The defaults are the tutorial's."""

    data: str = "mnist"
    data_dir: Path = Path("data")
    root: Path = Path("model_store")
    name: str | None = None  # None: the data set's name
    latent_dim: int = 2
    variational: bool = False  # a variational autoencoder rather than the plain one
    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    seed: int = 0
    alpha: float = ALPHA
    calibration_share: float = CALIBRATION_SHARE
    scorer: ScorerName = "residual"
    preprocess: Preprocess = "auto"  # auto: chosen by the images
    device: str = "auto"
    picture_every: int = 10  # epochs
    # CPU threads. Two are 15 % faster on an idle machine and 80 % slower on a busy one, where they wait for each other at
    # every one of the small steps. One gives the same bits on any number of cores.
    threads: int = 1

    def __post_init__(self) -> None:
        """Raise TrainingError if a value is not acceptable."""
        for name in ("latent_dim", "epochs", "batch_size", "picture_every", "threads"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1")
        _require(0 <= self.seed < 2**32, "seed must lie between 0 and 2^32 - 1")
        _require(0 < self.learning_rate < math.inf, "learning_rate must be a number above 0")
        _require(0 <= self.weight_decay < math.inf, "weight_decay must be a number of at least 0")
        check_common(self.name, self.alpha, self.calibration_share, self.scorer, self.preprocess)

    def described(self) -> dict[str, Any]:
        """The configuration without the folders of data and store. `data` may be a path, for which the card has a name."""
        return {key: value for key, value in asdict(self).items() if key not in _LOCAL_PATHS}


def check_common(name: str | None, alpha: float, calibration_share: float, scorer: str, preprocess: str) -> None:
    """Raise TrainingError if one of the values that training and calibrating share is not acceptable."""
    _require(0 < alpha < 1, "alpha must lie between 0 and 1; 0.01 is 1 %")
    _require(0 < calibration_share < 1, "calibration_share must lie between 0 and 1")
    _require(scorer in get_args(ScorerName), f"scorer must be one of {', '.join(get_args(ScorerName))}")
    _require(preprocess in get_args(Preprocess), f"preprocess must be one of {', '.join(get_args(Preprocess))}")
    valid_name = name is None or re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name)
    _require(bool(valid_name), "name must consist of at most 64 of a-z, 0-9, - and _")


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise TrainingError(f"{sentence}.")
