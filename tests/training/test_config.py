"""The configuration of a training is validated when it is made."""

from dataclasses import replace
from typing import get_args

import pytest

from app.network.detector_network import SCORERS
from app.training.config import ScorerName, TrainConfig, TrainingError


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"latent_dim": 0},
        {"learning_rate": float("nan")},
        {"weight_decay": -1},
        {"alpha": 1.0},
        {"seed": -1},
        {"calibration_share": 0.0},
        {"name": "../escape"},
        {"name": "Über"},
        {"scorer": "guess"},
        {"preprocess": "digits"},
    ],
)
def test_values_that_are_not_acceptable_are_refused(changes):
    """The message names the setting."""
    with pytest.raises(TrainingError, match=next(iter(changes))):
        replace(TrainConfig(), **changes)


def test_every_scorer_can_be_chosen():
    """Their names are listed without importing torch."""
    assert get_args(ScorerName) == tuple(SCORERS)


def test_the_card_states_no_path_of_this_machine():
    """Neither the store's folder nor the data's is in the description."""
    assert not {"root", "data_dir"} & TrainConfig().described().keys()
