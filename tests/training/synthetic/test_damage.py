import numpy as np
import pytest
from strokes import stroke_images

from app.detection.imaging.preprocess import preprocess_digit
from app.training.synthetic.damage import MUTILATED, damage


@pytest.fixture(scope="module")
def drawings():
    """Large pages with one drawing each, and the prepared images."""
    pages = [np.pad(image, 9) for image in stroke_images(5, seed=0, size=112)]
    return [(page / 255, preprocess_digit(page).image) for page in pages]


def test_prepared_drawings_are_whole(drawings):
    """Preparation loses nothing of clean strokes, and adds nothing."""
    assert all(damage(prepared, ink) <= MUTILATED for ink, prepared in drawings)


def test_missing_and_foreign_ink_is_damage(drawings):
    """Half of the strokes gone, ink elsewhere, a full square, and nothing at all."""
    for ink, prepared in drawings:
        half, foreign, full = prepared.copy(), prepared.copy(), np.full_like(prepared, 255)
        half[14:] = 0
        foreign[:, :4] = foreign[:, -4:] = 255
        assert all(damage(each, ink) > MUTILATED for each in (half, foreign, full, np.zeros_like(prepared)))


def test_a_page_without_strokes_has_no_damage(drawings):
    """There is nothing that could be lost."""
    assert damage(drawings[0][1], np.zeros((40, 40))) == 0
