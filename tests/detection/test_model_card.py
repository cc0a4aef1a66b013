import numpy as np
import pytest
from pydantic import ValidationError

from app.detection.model_card import Card, self_check_images


def test_self_check_images_are_the_same_everywhere():
    """They come from the seed alone: these pixels hold on any machine and any numpy."""
    images = self_check_images(0, 28)
    assert images.shape == (16, 28, 28)
    assert images.dtype == np.uint8
    assert images[0, 0, :8].tolist() == [172, 172, 172, 172, 67, 67, 67, 67]
    assert images[8, 0, :4].tolist() == [218, 106, 219, 250]
    assert np.array_equal(images, self_check_images(0, 28))
    assert not np.array_equal(images, self_check_images(1, 28))


@pytest.mark.parametrize("size", [1, 5, 28, 32])
def test_self_check_images_come_in_any_size(size):
    """A network for other images has self-check images of its own size."""
    assert self_check_images(3, size).shape == (16, size, size)


def test_a_card_survives_json(tiny_bundle):
    """Written and read again, it is the same card, to the last bit of every number."""
    assert Card.model_validate_json(tiny_bundle.card.model_dump_json()) == tiny_bundle.card


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "../mnist"},
        {"name": ""},
        {"name": "Mnist"},
        {"name": "a" * 65},
        {"version": 0},
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"threshold": float("nan")},
        {"threshold": float("inf")},
        {"calibration_images": 0},
        {"colour": "red"},
        {"self_check": {"seed": 0, "scores": [float("nan")]}},
    ],
    ids=str,
)
def test_a_card_that_makes_no_sense_is_refused(tiny_bundle, wrong):
    """Names that are paths, rates out of range, numbers that are not finite and unknown fields do not pass."""
    with pytest.raises(ValidationError):
        Card.model_validate({**tiny_bundle.card.model_dump(), **wrong})


def test_a_bundle_is_labelled_as_in_the_store(tiny_bundle):
    """Its label is the name and the version."""
    assert tiny_bundle.label == "mnist/1"
