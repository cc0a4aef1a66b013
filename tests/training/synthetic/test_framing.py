"""Images get the frame of other images."""

import torch
from strokes import stroke_images

from app.training.synthetic.framing import bounding_box, centre_of_mass, match_centre, match_frame

IMAGES = torch.from_numpy(stroke_images(32, seed=1))[:, None] / 127.5 - 1
SMALL = torch.nn.functional.avg_pool2d(IMAGES, 2)
AWAY = torch.nn.functional.pad(SMALL, (1, 13, 2, 12), value=-1.0)  # half as large, in a corner


def test_a_small_image_in_a_corner_gets_size_and_place_of_the_other():
    """The longer side agrees to a pixel or two, which is what resampling blurs, the centre of mass to a pixel."""
    framed = match_frame(AWAY, IMAGES)
    assert (bounding_box(AWAY).side < 0.7 * bounding_box(IMAGES).side).all()
    assert (bounding_box(framed).side - bounding_box(IMAGES).side).abs().max() <= 3
    assert (centre_of_mass(framed) - centre_of_mass(IMAGES)).abs().max() < 1


def test_centring_moves_by_whole_pixels():
    """The pixels stay what they are; only their place changes."""
    moved = match_centre(AWAY, IMAGES)
    assert (centre_of_mass(moved) - centre_of_mass(IMAGES)).abs().max() <= 0.51
    assert torch.equal(moved.flatten(1).sort().values, AWAY.flatten(1).sort().values)


def test_an_image_without_ink_stays_blank():
    """Neither as image nor as example does it divide by zero."""
    blank = torch.full_like(IMAGES, -1.0)
    assert torch.equal(match_frame(blank, IMAGES), blank)
    assert torch.isfinite(match_frame(IMAGES, blank)).all()
