"""What the training tests share: a small data set on the disk, and the settings of a short training on it."""

from dataclasses import replace

import numpy as np
import pytest
from strokes import stroke_images

from app.training.config import TrainConfig


@pytest.fixture(scope="session")
def strokes_file(tmp_path_factory):
    """420 drawings and their classes, in an .npz."""
    path = tmp_path_factory.mktemp("data") / "strokes.npz"
    np.savez(path, images=stroke_images(420, seed=0), labels=np.arange(420) % 10)
    return path


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
