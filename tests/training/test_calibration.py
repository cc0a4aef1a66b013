"""Calibration of a trained network."""

import numpy as np
import pytest
import torch
from strokes import stroke_images

from app.detection import store
from app.detection.detector import Detector
from app.detection.model_card import EpochLosses
from app.detection.runtimes import load_network
from app.network.autoencoder import Autoencoder
from app.network.detector_network import DetectorNetwork
from app.network.mse_scorer import MseScorer
from app.training.calibration import Provenance, _raise, false_alarm_interval, make_bundle
from app.training.datasets import LabelledImages


def test_interval_of_the_false_alarm_rate():
    """The Beta law: 10,000 calibration images leave the rate at 1 % uncertain by about a sixth, 99 by much more."""
    low, high = false_alarm_interval(10_000, 0.01)
    assert (low, high) == pytest.approx((0.0084, 0.0117), abs=1e-4)
    assert false_alarm_interval(99, 0.01)[1] > 0.02


def test_interval_of_a_group_of_uploads():
    """It covers thresholds that lie one calibration score higher, down to none that can be exceeded."""
    low, high = false_alarm_interval(300, 0.01, mapped=True)
    assert (low, high) == pytest.approx((false_alarm_interval(300, 0.0067)[0], false_alarm_interval(300, 0.01)[1]))
    assert false_alarm_interval(99, 0.01, mapped=True)[0] == 0


def test_scores_are_raised_on_their_own_scale():
    """A scorer of plain errors may have scores of a thousandth; raised by a ten-thousandth they would be others."""
    scores = np.random.default_rng(0).exponential(1, 1000)
    np.testing.assert_allclose(_raise(scores * 1e-3), _raise(scores) * 1e-3)
    assert (_raise(scores) - scores).min() > 5e-5


@pytest.mark.parametrize("seed", [0, 1, 2, 3, None])
def test_an_image_that_equals_calibration_images_is_not_above_them(seed, trained_version):
    """Forty blank fields among 240 images: 40 of 241 score as high as another one, whatever batch it is served in.

    With untrained networks and plain errors, and (None) with a trained one and its scorer.
    """
    if seed is None:
        network = load_network(store.load(trained_version)).eval()
    else:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = DetectorNetwork(Autoencoder(), MseScorer()).eval()
    normal, field = stroke_images(200, seed=seed or 0), np.indices((28, 28)).sum(0).astype(np.uint8) % 2 * 255
    images = np.concatenate([normal[:100], np.repeat(field[None], 40, axis=0), normal[100:]])
    provenance = Provenance(name="a", alpha=0.01, preprocess="none", training={}, data={}, losses=EpochLosses())
    bundle = make_bundle(network, None, LabelledImages(images), provenance)
    assert np.unique(bundle.calibration.scores, return_counts=True)[1].max() == 40
    detector = Detector(bundle, "cpu")
    for others in (0, 1, 7, 31, 200):
        assert detector.detect(np.concatenate([normal[:others], field[None]])).p_values[-1] >= 41 / 241
