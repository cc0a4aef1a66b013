"""Augmentation of normal images and synthetic anomalies."""

import pytest
import torch
from strokes import stroke_images

from app.training.synthetic.anomalies import ANOMALIES, augment_normal, synthetic_anomaly

IMAGES = torch.from_numpy(stroke_images(64, seed=1))[:, None] / 127.5 - 1


def draw(transform, seed=0):
    return transform(IMAGES, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("transform", [augment_normal, synthetic_anomaly], ids=lambda each: each.__name__)
def test_the_generator_decides_everything(transform):
    """Equal seeds give equal bits, other seeds other images."""
    assert torch.equal(draw(transform), draw(transform))
    assert not torch.equal(draw(transform), draw(transform, seed=1))


@pytest.mark.parametrize("transform", [transform for transform, _ in ANOMALIES], ids=lambda each: each.__name__)
def test_every_anomaly_is_another_image_of_the_same_shape_and_range(transform):
    """Each transform changes the images and keeps them in [-1, 1]."""
    images = draw(transform)
    assert images.shape == IMAGES.shape
    assert (images >= -1 - 1e-5).all() and (images <= 1 + 1e-5).all()
    assert ((images - IMAGES).abs().amax((1, 2, 3)) > 0.1).float().mean() > 0.5


def test_augmented_images_stay_closer_to_their_originals_than_anomalies_do():
    """The mean squared difference of a mild variation is less than half of an anomaly's."""
    mild, strong = (float((draw(transform) - IMAGES).square().mean()) for transform in (augment_normal, synthetic_anomaly))
    assert 0 < mild < strong / 2
