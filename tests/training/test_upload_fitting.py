import numpy as np
import pytest
from strokes import stroke_images

from app.network.mse_scorer import MseScorer
from app.training import scorer_fitting, upload_fitting
from app.training.datasets import LabelledImages
from app.training.synthetic.uploads import synthesise_pictures, synthesise_uploads


@pytest.fixture(scope="module")
def drawings():
    return LabelledImages(stroke_images(100, seed=3), np.zeros(100, np.int64))


class OtherScorer:
    """Stands for a fitted scorer."""


class Network:
    """Stands for a detector's network."""

    def __init__(self, scorer):
        self.scorer = scorer


@pytest.fixture(scope="module")
def scorer(drawings):
    patch = pytest.MonkeyPatch()
    for name, value in (("UPLOADS", 100), ("PICTURES", 60), ("PICTURE_STEPS", 200), ("MIN_STEPS", 60)):
        patch.setattr(upload_fitting, name, value)
    patch.setattr(scorer_fitting, "BATCH", 128)
    patch.setattr(upload_fitting, "score_images", lambda network, images: np.ones(len(images), np.float32))
    yield upload_fitting.fit_upload_scorer(Network(OtherScorer()), drawings, seed=0)
    patch.undo()


def test_the_plain_error_has_no_upload_scorer(drawings):
    """Its uploads are scored as unprepared images are."""
    assert upload_fitting.fit_upload_scorer(Network(MseScorer()), drawings, seed=0) is None


def test_pictures_of_things_score_higher_than_uploads(scorer, drawings):
    """New pictures against new uploads of the drawings, by what the networks add."""
    uploads = synthesise_uploads(drawings.images[:60], seed=9)
    pictures = synthesise_pictures(60, size=28, seed=9)
    usual, unusual = (scorer.networks.score(each.images, each.features) for each in (uploads, pictures))
    assert (usual >= 0).all()
    assert np.median(unusual) > np.quantile(usual, 0.95)
