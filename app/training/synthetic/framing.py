"""Size and position of the ink: gives an image the frame of another.

Images of MNIST share one size and one centre of mass, and so do all images that were prepared alike. If no synthetic anomaly
had them, a scorer would tell anomalies by their place alone, and would miss those that were prepared alike.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_INK = -0.5  # in [-1, 1]: brighter pixels are ink
_SCALES = (0.4, 2.0)  # smallest and largest change of size


class Box(NamedTuple):
    """The bounding box of the ink of each image, in pixels; all of the image where there is no ink."""

    centre: Tensor  # [N, 2]: x, y
    side: Tensor  # [N], the longer one


def match_frame(images: Tensor, like: Tensor) -> Tensor:
    """Resize and move each image [N, 1, S, S] so that its ink has the longer side and the centre of mass of `like`."""
    box = bounding_box(images)
    scale = (box.side / bounding_box(like).side).clamp(*_SCALES)
    half = images.shape[-1] / 2
    matrix = torch.zeros(len(images), 2, 3)
    matrix[:, 0, 0] = matrix[:, 1, 1] = scale
    matrix[:, :, 2] = (box.centre - half) / half
    return match_centre(F.grid_sample(images + 1, _grid(matrix, images), align_corners=False) - 1, like)


def match_centre(images: Tensor, like: Tensor) -> Tensor:
    """Move each image [N, 1, S, S] by whole pixels so that its centre of mass is that of `like`, to half a pixel."""
    moved = (centre_of_mass(like) - centre_of_mass(images)).round().long()
    side = images.shape[-1]
    sources = torch.arange(side) - moved[:, :, None]  # [N, 2, S]: the column and the row that a pixel comes from
    inside = (sources >= 0) & (sources < side)
    columns, rows = sources.clamp(0, side - 1).unbind(1)
    pixels = images[:, 0].gather(2, columns[:, None, :].expand(-1, side, -1)).gather(1, rows[:, :, None].expand(-1, -1, side))
    return torch.where(inside[:, 1, :, None] & inside[:, 0, None, :], pixels, -1.0)[:, None]


def centre_of_mass(images: Tensor) -> Tensor:
    """Images [N, 1, S, S] -> x and y of the centre of mass of the ink, in pixels [N, 2]; 0 where there is no ink."""
    ink = images[:, 0] + 1
    position = torch.arange(images.shape[-1], dtype=ink.dtype)
    both = torch.stack([ink.sum(1) @ position, ink.sum(2) @ position], 1)
    return both / ink.sum((1, 2)).clamp(min=1e-3)[:, None]


def bounding_box(images: Tensor) -> Box:
    """The `Box` of each image [N, 1, S, S]."""
    ink = images[:, 0] > _INK
    side = images.shape[-1]
    covered = torch.stack([ink.any(1), ink.any(2)], 1)  # [N, 2, S]: columns and rows that hold ink
    covered |= ~covered.any(2, keepdim=True)
    first, last = covered.int().argmax(2), side - covered.flip(2).int().argmax(2)
    return Box((first + last) / 2, (last - first).amax(1).float())


def _grid(matrix: Tensor, images: Tensor) -> Tensor:
    return F.affine_grid(matrix, list(images.shape), align_corners=False)
