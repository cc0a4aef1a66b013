"""An evaluation gives the figures of every set and draws its pictures."""

import json

import numpy as np
import pytest
from strokes import stroke_images

from app.detection.detector import Detector
from app.detection.store import load_card
from app.training.datasets import DataError, LabelledImages
from app.training.evaluate import NamedImages, evaluate, named_images, normal_test_images


@pytest.fixture(scope="module")
def detector(tiny_bundle):
    return Detector(tiny_bundle, "cpu")


NORMAL = NamedImages("strokes", LabelledImages(stroke_images(200, seed=8)))
NOISE = NamedImages("noise", LabelledImages(np.random.RandomState(0).randint(0, 256, (60, 28, 28)).astype(np.uint8)))


def test_evaluation(detector, tmp_path):
    """Figures for each set and their mean, false alarms for each rate that the calibration allows, pictures in the folder."""
    found = evaluate(detector, NORMAL, [NOISE, NamedImages("more-noise", LabelledImages(NOISE.images[:30]))], tmp_path / "out")
    assert [each.name for each in found.sets] == ["noise", "more-noise"]
    assert found.mean["auroc"] == pytest.approx(np.mean([each.ranking.auroc for each in found.sets]))
    assert [each.alpha for each in found.false_alarms] == [0.01, 0.05, 0.1]
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["sets"][0]["images"] == 60
    pictures = {path.name for path in (tmp_path / "out").iterdir()}
    assert pictures == {
        "p_values.png",
        "errors.png",
        "roc.png",
        "caught.png",
        "extremes_strokes.png",
        "extremes_noise.png",
        "extremes_more-noise.png",
    }


def test_evaluation_without_anomalies(detector, tmp_path):
    """Normal images alone show whether the threshold holds; there is no curve to draw."""
    found = evaluate(detector, NORMAL, [], tmp_path)
    assert (found.sets, found.mean) == ((), {})
    assert not (tmp_path / "roc.png").exists()


def test_own_test_images(trained_version, strokes_file):
    """A model's own test images are those that its training held back; other images under the same name are noticed."""
    card = load_card(trained_version)
    own = normal_test_images(card, None, strokes_file.parent)
    assert len(own.images) == 60
    altered = card.model_copy(update={"data": {**card.data, "sha256": "0" * 64}})
    with pytest.raises(DataError, match=r"other images.*--normal"):
        normal_test_images(altered, None, strokes_file.parent)


def test_a_set_that_trained_the_model_gives_its_test_images(trained_version, strokes_file):
    """Named as normal images too, only its test images count. Other labels, and images that all calibrated, are refused."""
    card = load_card(trained_version)
    own = normal_test_images(card, None, strokes_file.parent)
    named = normal_test_images(card, str(strokes_file), strokes_file.parent)
    assert np.array_equal(named.images, own.images)
    relabelled = strokes_file.with_name("relabelled.npz")
    with np.load(strokes_file) as arrays:
        np.savez(relabelled, images=arrays["images"], labels=np.zeros(len(arrays["images"]), int))
    with pytest.raises(DataError, match="other labels"):
        normal_test_images(card, str(relabelled), strokes_file.parent)
    calibrated = {"name": "strokes", "sha256": card.data["sha256"], "trained_on": {"sha256": "0" * 64}}
    with pytest.raises(DataError, match="served to calibrate"):
        normal_test_images(card.model_copy(update={"data": calibrated}), str(strokes_file), strokes_file.parent)


def test_named_images_takes_the_test_part(data_root):
    """Of a set with a test part, only that is judged."""
    assert len(named_images("mnist", data_root).images) == 10_000
