"""What the training tests share: the settings of a short training, and one training that several tests look at."""

from dataclasses import replace

import pytest

from app.training.config import TrainConfig
from app.training.train import train


def short_config(data, root):
    return TrainConfig(
        data=str(data),
        root=root,
        epochs=3,
        batch_size=32,
        alpha=0.05,
        device="cpu",
        scorer="mse",  # needs no fitting
        picture_every=2,
        preprocess="digit",
    )


@pytest.fixture
def short(strokes_file, tmp_path):
    """The settings of a training of three epochs, changed as asked: 240 images fit, 120 calibrate, 60 test."""

    def config(**changes):
        return replace(short_config(strokes_file, tmp_path / "store"), **changes)

    return config


@pytest.fixture(scope="session")
def trained_version(strokes_file, tmp_path_factory):
    """The published version of one uninterrupted short training."""
    return train(short_config(strokes_file, tmp_path_factory.mktemp("trained")))
