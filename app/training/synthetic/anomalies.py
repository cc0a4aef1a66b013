"""Images made from normal images: by other hands (still normal), and strangers (no longer). Knows not what they show.

What a scorer may learn about anomalies has to come from somewhere; here it comes from the normal images themselves, turned,
cut up, pasted together, faded. Everything takes and returns float32 [N, 1, S, S] in [-1, 1], -1 = background, and draws from
the generator it is given. Sizes are in pixels of a 28x28 image.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Change = Callable[[Tensor, Generator], Tensor]


def augment_normal(images: Tensor, g: Generator) -> Tensor:
    """Still normal: slightly turned, sheared, scaled and shifted, through another pen or scanner."""
    return _other_pen(_affine(images, g, turn=(-8, 8), shear=0.1, scale=0.1, shift=1), g)


def synthetic_anomaly(images: Tensor, g: Generator) -> Tensor:
    """No longer normal: of another shape or surface; half of them through another pen, so that the pen tells nothing."""
    made = _one_of(images, ANOMALIES, g)
    return torch.where(_uniform(images, g) < 0.5, _other_pen(made, g), made)


# ----------------------------------------------------------------------------------------------------- pens and scanners


def _other_pen(images: Tensor, g: Generator) -> Tensor:
    return _one_of(images, ((_thickness, 7), (_blur, 5), (_rescan, 5), (_unchanged, 3)), g)


def _thickness(images: Tensor, g: Generator) -> Tensor:
    """Part of the way to the grey dilation or erosion by 3x3: a broader or a finer pen."""
    broad, fine = F.max_pool2d(images, 3, 1, 1), -F.max_pool2d(-images, 3, 1, 1)
    target = torch.where(_uniform(images, g) < 0.5, broad, fine)
    return torch.lerp(images, target, _uniform(images, g))


def _blur(images: Tensor, g: Generator) -> Tensor:
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    soft = F.conv2d(images + 1, torch.outer(kernel, kernel)[None, None], padding=1) - 1
    return torch.lerp(images, soft, _uniform(images, g))


def _rescan(images: Tensor, g: Generator) -> Tensor:
    """As from a scanner of half to four fifths of the pixels a side."""
    size = images.shape[-1]
    return _one_of(images, [(_scanner(side), 1) for side in range(size // 2, math.ceil(0.84 * size))], g)


def _scanner(side: int) -> Change:
    def scan(images: Tensor, g: Generator) -> Tensor:
        coarse = F.interpolate(images, size=(side, side), mode="area")
        return F.interpolate(coarse, size=images.shape[-2:], mode="bilinear", align_corners=False)

    return scan


def _unchanged(images: Tensor, g: Generator) -> Tensor:
    return images


# --------------------------------------------------------------------------------------------------------- other shapes


def _flip(images: Tensor, g: Generator) -> Tensor:
    return torch.where(_uniform(images, g) < 0.5, images.flip(3), images.flip(2))


def _turn(images: Tensor, g: Generator) -> Tensor:
    return _affine(images, g, turn=(45, 315))


def _distort(images: Tensor, g: Generator) -> Tensor:
    return _affine(images, g, turn=(-20, 20), shear=0.6, scale=0.5, shift=5)


def _elastic(images: Tensor, g: Generator) -> Tensor:
    """Every point pushed by up to some pixels, its neighbours likewise."""
    coarse = torch.randn(len(images), 2, 5, 5, generator=g) * 0.25
    push = F.interpolate(coarse, size=images.shape[-2:], mode="bicubic", align_corners=True)
    still = F.affine_grid(torch.eye(2, 3).expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return _warp(images, still + push.permute(0, 2, 3, 1))


def _turned_elastic(images: Tensor, g: Generator) -> Tensor:
    return _elastic(_turn(images, g), g)


def _paste(images: Tensor, g: Generator) -> Tensor:
    """With a window of another image, as it is or flipped."""
    other = _shuffled(images, g)
    other = torch.where(_uniform(images, g) < 0.3, _flip(other, g), other)
    return torch.where(_window(images, 8, 20, g), other, images)


def _halves(images: Tensor, g: Generator) -> Tensor:
    """One half of another image."""
    half = torch.arange(images.shape[-1]) < images.shape[-1] // 2
    half = half[None, :] if torch.rand((), generator=g) < 0.5 else half[:, None]
    return torch.where(half, images, _shuffled(images, g))


def _turned_halves(images: Tensor, g: Generator) -> Tensor:
    return _halves(_turn(images, g), g)


def _overlay(images: Tensor, g: Generator) -> Tensor:
    return torch.maximum(images, _shuffled(images, g))


def _hole(images: Tensor, g: Generator) -> Tensor:
    return images.masked_fill(_window(images, 6, 10, g), -1.0)


def _blocks(images: Tensor, g: Generator) -> Tensor:
    """Sixteen blocks in another order; pixels that no block reaches stay."""
    n, side = len(images), images.shape[-1] // 4
    blocks = images[..., : 4 * side, : 4 * side].reshape(n, 4, side, 4, side).transpose(2, 3).reshape(n, 16, side * side)
    order = torch.rand(n, 16, generator=g).argsort(1)[:, :, None].expand(-1, -1, side * side)
    moved = blocks.gather(1, order).view(n, 4, 4, side, side).transpose(2, 3).reshape(n, 1, 4 * side, 4 * side)
    out = images.clone()
    out[..., : 4 * side, : 4 * side] = moved
    return out


# ------------------------------------------------------------------------------------------------------- other surfaces


def _fade(images: Tensor, g: Generator) -> Tensor:
    return (images + 1) * _uniform(images, g).square() * 0.4 - 1


def _remnant(images: Tensor, g: Generator) -> Tensor:
    """All gone but one small window; now and then that window is solid ink."""
    inside = torch.where(_uniform(images, g) < 0.4, 1.0, images)
    return torch.where(_window(images, 1, 6, g), inside, -1.0)


def _speck(images: Tensor, g: Generator) -> Tensor:
    """A dot of ink on empty paper: the least that is not blank, and near enough to a short stroke to need telling."""
    return torch.where(_window(images, 1, 3, g), 1.0, torch.full_like(images, -1.0))


def _noise(images: Tensor, g: Generator) -> Tensor:
    kept = (_uniform(images, g) < 0.7).float()
    grain = torch.randn(images.shape, generator=g).abs() * _uniform(images, g) * 0.6
    return ((images + 1) * kept - 1 + grain).clamp(-1, 1)


def _wash(images: Tensor, g: Generator) -> Tensor:
    """Towards one grey."""
    grey = (_uniform(images, g) * 2 - 1).expand_as(images)
    return torch.lerp(images, grey, _uniform(images, g).sqrt())


ANOMALIES: tuple[tuple[Change, float], ...] = (
    (_turn, 2),
    (_flip, 2),
    (_distort, 1),
    (_elastic, 2),
    (_turned_elastic, 1),
    (_paste, 3),
    (_halves, 1),
    (_turned_halves, 1),
    (_overlay, 1),
    (_hole, 1),
    (_blocks, 1),
    (_fade, 1),
    (_remnant, 3),
    (_speck, 1),
    (_noise, 1),
    (_wash, 1),
)


# ------------------------------------------------------------------------------------------------------------------ parts


def _one_of(images: Tensor, changes: Sequence[tuple[Change, float]], g: Generator) -> Tensor:
    """Each image goes through one of the changes, drawn by their weights."""
    weights = torch.tensor([float(weight) for _, weight in changes])
    choice = torch.multinomial(weights, len(images), replacement=True, generator=g)
    out = images.clone()
    for index, (change, _) in enumerate(changes):
        chosen = choice == index
        if chosen.any():
            out[chosen] = change(images[chosen], g)
    return out


def _uniform(images: Tensor, g: Generator) -> Tensor:
    """One number in [0, 1) an image: [N, 1, 1, 1]."""
    return torch.rand(len(images), 1, 1, 1, generator=g)


def _shuffled(images: Tensor, g: Generator) -> Tensor:
    return images[torch.randperm(len(images), generator=g)]


def _affine(
    images: Tensor, g: Generator, *, turn: tuple[float, float], shear: float = 0, scale: float = 0, shift: float = 0
) -> Tensor:
    """Turned by degrees from..to; sheared, scaled (log, each axis) and shifted by up to these sizes; all uniform."""
    n = len(images)

    def draw(size: float) -> Tensor:
        return (torch.rand(n, generator=g) * 2 - 1) * size

    angle = (turn[0] + (turn[1] - turn[0]) * torch.rand(n, generator=g)) * math.pi / 180
    wide, high = torch.exp(draw(scale)), torch.exp(draw(scale))
    top = [angle.cos() * wide, -angle.sin() * wide + draw(shear), draw(shift) / 14]
    bottom = [angle.sin() * high, angle.cos() * high, draw(shift) / 14]
    matrix = torch.stack([*top, *bottom], 1).view(n, 2, 3)
    return _warp(images, F.affine_grid(matrix, list(images.shape), align_corners=False))


def _warp(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(images + 1, grid, align_corners=False) - 1


def _window(images: Tensor, low: int, high: int, g: Generator) -> Tensor:
    """[N, 1, S, S] bool: one rectangle an image, of sides low..high, within the middle of the frame."""
    n, size = len(images), images.shape[-1]
    scale = size / 28

    def side() -> Tensor:
        length = torch.randint(low, high + 1, (n, 1), generator=g) * scale
        start = (4 * scale + (20 * scale - length).clamp(min=0) * torch.rand(n, 1, generator=g)).floor()
        at = torch.arange(size)
        return (at >= start) & (at < start + length)

    return (side()[:, :, None] & side()[:, None, :])[:, None]
