import numpy as np

from app.training.synthetic.pictures import SIDES, draw_picture
from app.training.synthetic.uploads import synthesise_pictures


def test_pictures_are_of_many_sizes_and_some_are_grey():
    """Equal seeds give equal pictures; each is a photograph's array of bytes."""
    pictures = [draw_picture(np.random.default_rng(seed)) for seed in range(60)]
    assert np.array_equal(pictures[0], draw_picture(np.random.default_rng(0)))
    assert all(picture.dtype == np.uint8 and picture.shape[1] <= SIDES[1] for picture in pictures)
    assert {picture.ndim for picture in pictures} == {2, 3}
    assert len({picture.shape[:2] for picture in pictures}) > 30
    assert np.median([picture.std() for picture in pictures]) > 15


def test_prepared_pictures_have_features():
    """They are prepared as uploads are, to the size that is asked for."""
    uploads = synthesise_pictures(12, size=20, seed=1)
    assert uploads.images.shape == (12, 20, 20)
    assert np.isfinite(uploads.features).all()
