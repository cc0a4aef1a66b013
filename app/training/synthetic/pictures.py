"""Synthetic photographs of things: random shapes that cover each other, with the textures of natural images.

After the dead leaves model (Lee, Mumford & Huang, Occlusion models for natural images, 2001), from which networks learn much of
what they learn from photographs (Baradad et al., Learning to see by looking at noise, 2021). No photograph is used.
"""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Rng = np.random.Generator

SIDES = (20, 192)  # pixels of the longer side
MOST_SHAPES = 16


def draw_picture(rng: Rng) -> Pixels:
    """Draw one picture: uint8 [H, W] or [H, W, 3]."""
    width = round(math.exp(rng.uniform(math.log(SIDES[0]), math.log(SIDES[1]))))
    height = max(8, round(width * math.exp(rng.normal(0, 0.2))))
    texture = _natural_texture(height, width, rng)
    scene = Image.fromarray(_surface(texture, rng, strongest=45))
    for _ in range(round(math.exp(rng.uniform(0, math.log(MOST_SHAPES))))):
        shape = _random_shape(scene.size, rng).filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.8)))
        scene.paste(Image.fromarray(_surface(np.roll(texture, rng.integers(width), axis=1), rng, strongest=35)), (0, 0), shape)
    if rng.random() < 0.5:
        scene = scene.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.01) * width))
    if rng.random() < 0.3:
        scene = scene.convert("L")
    noisy = np.asarray(scene) + rng.normal(0, rng.gamma(2, 1.5), (height, width) + (3,) * (scene.mode == "RGB"))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _natural_texture(height: int, width: int, rng: Rng) -> Floats:
    """Noise [H, W] of variance 1 whose amplitude falls with the frequency as in natural images, or more or less steeply."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1 / max(height, width)
    phases = rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)
    noise = np.fft.irfft2(phases / frequency ** rng.uniform(0.7, 1.6), (height, width))
    texture: Floats = ((noise - noise.mean()) / max(float(noise.std()), 1e-6)).astype(np.float32)
    return texture


def _surface(texture: Floats, rng: Rng, strongest: float) -> Pixels:
    """A surface of one colour with a texture [H, W] and a gradient of light, uint8 [H, W, 3]."""
    height, width = texture.shape
    colour = rng.uniform(0, 255, 3) if rng.random() < 0.7 else np.full(3, rng.uniform(0, 255))
    tint = rng.uniform(0, strongest) + rng.normal(0, 5, 3)
    slopes = rng.normal(0, 25, 2)
    light = np.linspace(-1, 1, height)[:, None] * slopes[0] + np.linspace(-1, 1, width)[None] * slopes[1]
    surface: Pixels = np.clip(colour + texture[..., None] * tint + light[..., None], 0, 255).astype(np.uint8)
    return surface


def _random_shape(size: tuple[int, int], rng: Rng) -> Image.Image:
    """A mask with one ellipse, polygon, bar or bent line, near the middle more often than elsewhere."""
    mask = Image.new("L", size)
    draw, reach = ImageDraw.Draw(mask), 0.5 * max(size) * rng.uniform(0.04, 1) ** 1.7
    x, y = rng.uniform(0, size) if rng.random() < 0.6 else rng.normal(np.divide(size, 2), np.divide(size, 6))
    flat, turn = reach * rng.uniform(0.2, 1), rng.uniform(0, math.pi)
    kind = rng.integers(4)
    if kind == 0:
        draw.ellipse((x - reach, y - flat, x + reach, y + flat), fill=255)
    elif kind == 1:
        angles = np.sort(rng.uniform(0, 2 * math.pi, rng.integers(3, 8)))
        corners = reach * rng.uniform(0.5, 1, len(angles))
        draw.polygon([*zip(x + corners * np.cos(angles), y + corners * np.sin(angles), strict=True)], fill=255)
    elif kind == 2:
        along, across = np.array([math.cos(turn), math.sin(turn)]), np.array([-math.sin(turn), math.cos(turn)])
        signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
        draw.polygon([tuple(np.add((x, y), a * reach * along + b * flat * across)) for a, b in signs], fill=255)
    else:
        steps = np.add((x, y), np.cumsum(rng.normal(0, reach, (rng.integers(3, 8), 2)), axis=0))
        draw.line([tuple(step) for step in steps], fill=255, width=max(1, int(reach * rng.uniform(0.05, 0.5))), joint="curve")
    return mask
