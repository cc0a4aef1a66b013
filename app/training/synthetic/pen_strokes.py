"""Random glyphs: one to four strokes of a pen between points of a lattice, each a line, an arc, an S or a ring.

They look like characters of an unknown script. A few look like a digit; the scorer learns a density ratio, so these cost it
little.
"""

import math

import torch
from torch import Generator, Tensor

from app.training.synthetic.framing import match_centre

STROKES, POINTS = 4, 40  # strokes of a glyph, at most; points along each
LATTICE = 4  # points a side between which strokes run
_CHUNK = 1_000  # glyphs drawn at once: 100 MB of distances


def pen_strokes(images: Tensor, rng: Generator) -> Tensor:
    """One glyph for each image [N, 1, S, S], as high or wide as a digit of MNIST and with the image's centre of mass."""
    n, side = len(images), images.shape[-1]
    curves = _curves(n, rng)
    drawn = torch.arange(STROKES) < torch.randint(1, STROKES + 1, (n, 1), generator=rng)
    drawn = drawn[:, :, None].expand(-1, -1, POINTS).reshape(n, -1, 1)
    points = curves.view(n, -1, 2)
    low, high = torch.where(drawn, points, math.inf).amin(1), torch.where(drawn, points, -math.inf).amax(1)
    radius = 0.7 + 1.3 * torch.rand(n, generator=rng)  # of the pen, in pixels of a 28x28 image
    scale = (20.5 - 2 * radius) / (high - low).amax(1).clamp(min=0.1)
    points = (points - (low + high)[:, None] / 2) * scale[:, None, None] + 14
    points = torch.where(drawn, points, math.inf)  # never the nearest
    distances = torch.cat([_distances(chunk * side / 28, side) for chunk in torch.split(points, _CHUNK)])
    ink = (radius[:, None, None] * side / 28 - distances + 0.5).clamp(0, 1)
    return match_centre(ink[:, None] * 2 - 1, images)


def _curves(n: int, rng: Generator) -> Tensor:
    """-> the points of each stroke [N, STROKES, POINTS, 2]: cubic Bezier curves and rings."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(n, STROKES, *shape, generator=rng)

    ends = torch.randint(0, LATTICE, (n, STROKES, 2, 2), generator=rng) / (LATTICE - 1)
    ends = (ends + torch.randn(ends.shape, generator=rng) * 0.05) * torch.exp(torch.randn(n, 1, 1, 2, generator=rng) * 0.25)
    start, end = ends.unbind(2)  # [N, STROKES, 2] each
    joined = uniform(1)[:, 1:] < 0.6  # to the end of the stroke before
    start = torch.cat([start[:, :1], torch.where(joined, end[:, :-1], start[:, 1:])], 1)
    along = end - start
    across = torch.stack([-along[..., 1], along[..., 0]], -1)
    kind, bend = uniform(1), (uniform(1) * 2 - 1) * 1.3
    bend = torch.where(kind < 0.45, 0.0, bend)
    second_bend = torch.where(kind > 0.8, -bend, bend)
    controls = [start, start + along / 4 + across * bend, start + along * 3 / 4 + across * second_bend, end]
    t = torch.linspace(0, 1, POINTS)[:, None]
    weights = torch.cat([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], 1)  # [POINTS, 4]
    curves = weights @ torch.stack(controls, 2)  # [N, STROKES, POINTS, 2]
    circle = torch.cat([torch.cos(2 * math.pi * t), torch.sin(2 * math.pi * t)], 1)
    rings = circle * (0.15 + 0.35 * uniform(1, 2)) + ((start + end) / 2)[:, :, None]
    return torch.where(uniform(1, 1) < 0.15, rings, curves)


def _distances(points: Tensor, side: int) -> Tensor:
    """Points [N, K, 2] in pixels -> the distance of each pixel's centre to the nearest point, [N, S, S]."""
    centres = torch.arange(side) + 0.5
    squared = (centres - points[..., None]).square()  # [N, K, 2, S]
    return (squared[:, :, 1, :, None] + squared[:, :, 0, None, :]).amin(1).sqrt()
