"""Augmentation: mild variations of normal images (label normal) and synthetic anomalies (label anomalous).

The scorer learns from these what an anomaly is. They are made of normal images, which are rotated, cut up, pasted together or
faded, and of random numbers: pen strokes, textured blobs, noise. No other data is used.
Every function takes and returns float32 [N, 1, S, S] in [-1, 1], -1 = background, and draws its random numbers from `rng`.
Sizes are in pixels of a 28x28 image.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from app.training.synthetic.framing import match_frame
from app.training.synthetic.pen_strokes import pen_strokes

Transform = Callable[[Tensor, Generator], Tensor]


def augment_normal(images: Tensor, rng: Generator) -> Tensor:
    """Variations that stay normal: another hand, pen or resolution, and shifts by parts of a pixel.

    Half of them get the original's size and centre of mass back, as digits of other hands have them that were prepared alike.
    """
    other_hand = _affine(images, rng, rotation=(-10, 10), shear=0.15, scale=0.25, shift=1)
    bent = _elastic_deformation(other_hand, rng, size=0.07 * _uniform(images, rng))
    other_hand = torch.where(_uniform(images, rng) < 0.5, bent, other_hand)
    framed = torch.where(_uniform(images, rng) < 0.5, match_frame(other_hand, images), other_hand)
    return vary_pen(framed, rng)


def synthetic_anomaly(images: Tensor, rng: Generator) -> Tensor:
    """Apply one of ANOMALIES to each image.

    Half of them get the size and centre of mass of the image, half of them another pen, so that neither tells an anomaly.
    """
    anomalies = _apply_one_of(images, ANOMALIES, rng)
    anomalies = torch.where(_uniform(images, rng) < 0.5, match_frame(anomalies, images), anomalies)
    return torch.where(_uniform(images, rng) < 0.5, vary_pen(anomalies, rng), anomalies)


def vary_pen(images: Tensor, rng: Generator) -> Tensor:
    """Another pen or a lower resolution; 3 in 20 images stay as they are."""
    return _apply_one_of(images, ((_vary_stroke_width, 7), (_blur, 5), (_lower_resolution, 5), (_identity, 3)), rng)


def _vary_stroke_width(images: Tensor, rng: Generator) -> Tensor:
    """Interpolate towards the 3x3 grey dilation or erosion: a broader or a finer pen."""
    dilated, eroded = F.max_pool2d(images, 3, 1, 1), -F.max_pool2d(-images, 3, 1, 1)
    target = torch.where(_uniform(images, rng) < 0.5, dilated, eroded)
    return torch.lerp(images, target, _uniform(images, rng))


def _blur(images: Tensor, rng: Generator) -> Tensor:
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    blurred = F.conv2d(images + 1, torch.outer(kernel, kernel)[None, None], padding=1) - 1
    return torch.lerp(images, blurred, _uniform(images, rng))


def _lower_resolution(images: Tensor, rng: Generator) -> Tensor:
    """Resample through a resolution of 0.5 to 0.82 times the side."""
    size = images.shape[-1]
    return _apply_one_of(images, [(_resample_to(side), 1) for side in range(size // 2, math.ceil(0.84 * size))], rng)


def _resample_to(side: int) -> Transform:
    def resample(images: Tensor, rng: Generator) -> Tensor:
        coarse = F.interpolate(images, size=(side, side), mode="area")
        return F.interpolate(coarse, size=images.shape[-2:], mode="bilinear", align_corners=False)

    return resample


def _identity(images: Tensor, rng: Generator) -> Tensor:
    return images


def _flip(images: Tensor, rng: Generator) -> Tensor:
    return torch.where(_uniform(images, rng) < 0.5, images.flip(3), images.flip(2))


def _rotate(images: Tensor, rng: Generator) -> Tensor:
    return _affine(images, rng, rotation=(45, 315))


def _strong_affine(images: Tensor, rng: Generator) -> Tensor:
    return _affine(images, rng, rotation=(-20, 20), shear=0.6, scale=0.5, shift=5)


def _elastic_deformation(images: Tensor, rng: Generator, size: float | Tensor = 0.25) -> Tensor:
    """Displace every point by a smooth random field (Simard et al., 2003); `size` in half sides of the image."""
    coarse = torch.randn(len(images), 2, 5, 5, generator=rng) * size
    displacement = F.interpolate(coarse, size=images.shape[-2:], mode="bicubic", align_corners=True)
    identity = F.affine_grid(torch.eye(2, 3).expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return _warp(images, identity + displacement.permute(0, 2, 3, 1))


def _rotate_and_deform(images: Tensor, rng: Generator) -> Tensor:
    return _elastic_deformation(_rotate(images, rng), rng)


def _paste_patch(images: Tensor, rng: Generator) -> Tensor:
    """Paste a rectangle of another image, sometimes flipped, as CutMix does (Yun et al., 2019)."""
    other = _permuted(images, rng)
    other = torch.where(_uniform(images, rng) < 0.3, _flip(other, rng), other)
    return torch.where(_rectangle_mask(images, 8, 20, rng), other, images)


def _join_halves(images: Tensor, rng: Generator) -> Tensor:
    """Replace one half of each image by that of another."""
    half = torch.arange(images.shape[-1]) < images.shape[-1] // 2
    half = half[None, :] if torch.rand((), generator=rng) < 0.5 else half[:, None]
    return torch.where(half, images, _permuted(images, rng))


def _rotate_and_join_halves(images: Tensor, rng: Generator) -> Tensor:
    return _join_halves(_rotate(images, rng), rng)


def _overlay(images: Tensor, rng: Generator) -> Tensor:
    return torch.maximum(images, _permuted(images, rng))


def _cutout(images: Tensor, rng: Generator) -> Tensor:
    return images.masked_fill(_rectangle_mask(images, 6, 10, rng), -1.0)


def _shuffle_blocks(images: Tensor, rng: Generator) -> Tensor:
    """Shuffle sixteen blocks. Pixels beyond 4 whole blocks a side stay in place."""
    n, side = len(images), images.shape[-1] // 4
    blocks = images[..., : 4 * side, : 4 * side].reshape(n, 4, side, 4, side).transpose(2, 3).reshape(n, 16, side * side)
    order = torch.rand(n, 16, generator=rng).argsort(1)[:, :, None].expand(-1, -1, side * side)
    moved = blocks.gather(1, order).view(n, 4, 4, side, side).transpose(2, 3).reshape(n, 1, 4 * side, 4 * side)
    out = images.clone()
    out[..., : 4 * side, : 4 * side] = moved
    return out


def _reduce_contrast(images: Tensor, rng: Generator) -> Tensor:
    return (images + 1) * _uniform(images, rng).square() * 0.4 - 1


def _keep_patch(images: Tensor, rng: Generator) -> Tensor:
    """Erase everything outside one small rectangle; 40 % of the rectangles are solid ink."""
    inside = torch.where(_uniform(images, rng) < 0.4, 1.0, images)
    return torch.where(_rectangle_mask(images, 1, 6, rng), inside, -1.0)


def _speck(images: Tensor, rng: Generator) -> Tensor:
    """A dot of ink on an empty page, which resembles a short stroke."""
    return torch.where(_rectangle_mask(images, 1, 3, rng), 1.0, torch.full_like(images, -1.0))


def _add_noise(images: Tensor, rng: Generator) -> Tensor:
    kept = (_uniform(images, rng) < 0.7).float()
    noise = torch.randn(images.shape, generator=rng).abs() * _uniform(images, rng) * 0.6
    return ((images + 1) * kept - 1 + noise).clamp(-1, 1)


def _textured_blobs(images: Tensor, rng: Generator) -> Tensor:
    """Smooth noise, cut off at a level and filled with a texture of smooth noise, as in DRAEM (Zavrtanik et al., 2021)."""
    shape = _smooth_noise(images, 4, rng) > torch.randn(len(images), 1, 1, 1, generator=rng) * 0.5
    texture = _smooth_noise(images, 10, rng) * _uniform(images, rng) * 0.5 + _uniform(images, rng) * 1.4 - 0.4
    cropped = torch.where(_uniform(images, rng) < 0.5, _rectangle_mask(images, 8, 20, rng), True)
    return torch.where(shape & cropped, texture.clamp(-1, 1), -1.0)


def _smooth_noise(images: Tensor, resolution: int, rng: Generator) -> Tensor:
    """Normal noise of `resolution` squared values, interpolated to the size of the images [N, 1, S, S]."""
    coarse = torch.randn(len(images), 1, resolution, resolution, generator=rng)
    return F.interpolate(coarse, size=images.shape[-2:], mode="bicubic", align_corners=True)


def _blend_to_grey(images: Tensor, rng: Generator) -> Tensor:
    """Blend each image towards one grey."""
    grey = (_uniform(images, rng) * 2 - 1).expand_as(images)
    return torch.lerp(images, grey, _uniform(images, rng).sqrt())


ANOMALIES: tuple[tuple[Transform, float], ...] = (
    (_rotate, 2),
    (_flip, 2),
    (_strong_affine, 1),
    (_elastic_deformation, 2),
    (_rotate_and_deform, 1),
    (_paste_patch, 3),
    (_join_halves, 1),
    (_rotate_and_join_halves, 1),
    (_overlay, 1),
    (_cutout, 1),
    (_shuffle_blocks, 1),
    (_reduce_contrast, 1),
    (_keep_patch, 3),
    (_speck, 1),
    (_add_noise, 1),
    (_blend_to_grey, 1),
    (_textured_blobs, 4),
    (pen_strokes, 8),
)


def _apply_one_of(images: Tensor, transforms: Sequence[tuple[Transform, float]], rng: Generator) -> Tensor:
    """Apply to each image one of the transforms, drawn by their weights."""
    weights = torch.tensor([float(weight) for _, weight in transforms])
    choice = torch.multinomial(weights, len(images), replacement=True, generator=rng)
    out = images.clone()
    for index, (transform, _) in enumerate(transforms):
        chosen = choice == index
        if chosen.any():
            out[chosen] = transform(images[chosen], rng)
    return out


def _uniform(images: Tensor, rng: Generator) -> Tensor:
    """One random number in [0, 1) for each image, on the CPU: [N, 1, 1, 1]."""
    return torch.rand(len(images), 1, 1, 1, generator=rng)


def _permuted(images: Tensor, rng: Generator) -> Tensor:
    return images[torch.randperm(len(images), generator=rng)]


def _affine(
    images: Tensor, rng: Generator, *, rotation: tuple[float, float], shear: float = 0, scale: float = 0, shift: float = 0
) -> Tensor:
    """Random affine maps: rotation between two angles in degrees; shear, log scale of each axis and shift up to these sizes."""
    n = len(images)

    def draw(size: float) -> Tensor:
        return (torch.rand(n, generator=rng) * 2 - 1) * size

    angle = (rotation[0] + (rotation[1] - rotation[0]) * torch.rand(n, generator=rng)) * math.pi / 180
    x_scale, y_scale = torch.exp(draw(scale)), torch.exp(draw(scale))
    first_row = [angle.cos() * x_scale, -angle.sin() * x_scale + draw(shear), draw(shift) / 14]
    second_row = [angle.sin() * y_scale, angle.cos() * y_scale, draw(shift) / 14]
    matrix = torch.stack([*first_row, *second_row], 1).view(n, 2, 3)
    return _warp(images, F.affine_grid(matrix, list(images.shape), align_corners=False))


def _warp(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(images + 1, grid, align_corners=False) - 1


def _rectangle_mask(images: Tensor, low: int, high: int, rng: Generator) -> Tensor:
    """bool [N, 1, S, S]: one rectangle in each image, with sides of low to high pixels, in the middle of the frame."""
    n, size = len(images), images.shape[-1]
    scale = size / 28

    def interval() -> Tensor:
        length = torch.randint(low, high + 1, (n, 1), generator=rng) * scale
        start = (4 * scale + (20 * scale - length).clamp(min=0) * torch.rand(n, 1, generator=rng)).floor()
        position = torch.arange(size)
        return (position >= start) & (position < start + length)

    return (interval()[:, :, None] & interval()[:, None, :])[:, None]
