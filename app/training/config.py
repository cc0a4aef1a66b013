"""What decides how a training ends: one frozen value, checked when it is made."""

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.training.datasets import CALIBRATION_SHARE

_NOT_THE_TRAINING = {"data_dir", "root"}  # where things lie on this machine: neither in the card nor in the digest


class TrainingError(RuntimeError):
    """The training cannot start or go on; the message says what to change."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides how a training ends. The defaults are the tutorial's."""

    data: str = "mnist"
    data_dir: Path = Path("data")
    root: Path = Path("model_store")
    name: str | None = None  # the data set's, unless given
    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    seed: int = 0
    alpha: float = 0.01
    calibration_share: float = CALIBRATION_SHARE
    scorer: str = "residual"
    device: str = "auto"
    picture_every: int = 10  # epochs
    # Of the CPU. Two gain 15 % on an idle machine and lose 80 % on a busy one, where they wait for each other at every one
    # of the small steps; and one gives the same bits however many cores there are.
    threads: int = 1

    def __post_init__(self) -> None:
        """Raises TrainingError where a value makes no sense."""
        for name in ("epochs", "batch_size", "picture_every", "threads"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1")
        _require(0 <= self.seed < 2**32, "seed must lie between 0 and 2^32 - 1")
        _require(0 < self.learning_rate < math.inf, "learning_rate must be a number above 0")
        _require(0 <= self.weight_decay < math.inf, "weight_decay must be 0 or a number above it")
        _require(0 < self.alpha < 1, "alpha must lie between 0 and 1")
        _require(0 < self.calibration_share < 1, "calibration_share must lie between 0 and 1")
        named = self.name is None or re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", self.name)
        _require(bool(named), "name must be made of a-z, 0-9, - and _, at most 64 of them")

    def described(self) -> dict[str, Any]:
        """The configuration as the card tells it."""
        return {key: value for key, value in asdict(self).items() if key not in _NOT_THE_TRAINING}


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise TrainingError(f"{sentence}.")
