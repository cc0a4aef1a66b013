"""A small form of benchmarks/uploads.py: every kind of image file, rendered by other code than the calibration uploads."""

import os
from pathlib import Path

import numpy as np
import pytest

from app.detection.detector import Detector, stack_features
from app.detection.store import find, load
from app.training.synthetic.damage import MUTILATED, damage
from benchmarks.upload_kinds import KINDS
from benchmarks.uploads import load_sets, prepare, render

DATA = Path(os.environ.get("ODDIGIT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
STORE = Path(__file__).resolve().parents[1] / "model_store"
IMAGES = 4  # of each kind

pytestmark = pytest.mark.skipif(not (DATA / "MNIST" / "raw").is_dir(), reason=f"no MNIST under {DATA}")


@pytest.fixture(scope="module")
def rendered():
    """The samples and prepared images of all kinds, by name."""
    digits = load_sets(DATA, IMAGES)["mnist"]
    samples = {name: render(name, digits) for name in KINDS}
    return {name: [(sample, prepare(sample)) for sample in each] for name, each in samples.items()}


def test_there_are_many_kinds():
    """The battery covers at least sixty kinds of file."""
    assert len(KINDS) >= 60


def test_preparation_leaves_digits_whole(rendered):
    """Of all files at most one in a hundred loses strokes or gains ink that is not the digit's."""
    damaged = [damage(prepared.image, sample.ink) > MUTILATED for pairs in rendered.values() for sample, prepared in pairs]
    assert np.mean(damaged) <= 0.01


def test_no_kind_of_file_is_an_anomaly(rendered):
    """The shipped detector accepts most digits of every kind, and 97 % over all kinds."""
    bundle = load(find(STORE, "mnist", None))
    assert bundle.uploads is not None
    assert bundle.uploads.groups
    detector = Detector(bundle, "cpu")
    flagged = {}
    for name, pairs in rendered.items():
        features = stack_features([prepared.features for _, prepared in pairs])
        detections = detector.detect(np.stack([prepared.image for _, prepared in pairs]), features)
        flagged[name] = (detections.p_values <= bundle.card.alpha).mean()
    assert max(flagged.values()) <= 0.5, flagged
    assert np.mean(list(flagged.values())) <= 0.03
