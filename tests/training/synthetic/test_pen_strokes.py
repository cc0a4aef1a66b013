"""Random glyphs."""

import pytest
import torch

from app.training.synthetic.framing import bounding_box, centre_of_mass
from app.training.synthetic.pen_strokes import pen_strokes


@pytest.mark.parametrize("side", [28, 16])
def test_glyphs_fill_the_frame_of_a_digit(side):
    """Twenty pixels of 28 on the longer side, at the centre of mass of the given images, whatever the resolution."""
    images = torch.full((200, 1, side, side), -1.0)
    images[:, :, side // 4 : -side // 4, side // 4 : -side // 4] = 1
    glyphs = pen_strokes(images, torch.Generator().manual_seed(0))
    assert glyphs.shape == images.shape
    sides = bounding_box(glyphs).side * 28 / side
    assert 18 <= sides.median() <= 22
    centred = (centre_of_mass(glyphs) - centre_of_mass(images)).abs().amax(1) <= 0.51
    assert centred.float().mean() > 0.9  # of a few, ink has left the frame


def test_no_two_glyphs_are_alike():
    """Each is drawn anew."""
    glyphs = pen_strokes(torch.zeros(50, 1, 28, 28), torch.Generator().manual_seed(0)).flatten(1)
    distances = torch.cdist(glyphs, glyphs).fill_diagonal_(99)
    assert distances.min() > 1
