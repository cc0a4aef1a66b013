"""What the training tests share: the settings of a short training on it."""

from dataclasses import replace

import pytest

from app.training.config import TrainConfig


@pytest.fixture
def short(strokes_file, tmp_path):
    """A training of three epochs: 300 images fit, 60 calibrate, 60 test."""

    def config(**changes):
        usual = TrainConfig(
            data=str(strokes_file),
            root=tmp_path / "store",
            epochs=3,
            batch_size=32,
            alpha=0.05,
            device="cpu",
            scorer="mse",  # fitted at once
        )
        return replace(usual, **changes)

    return config
