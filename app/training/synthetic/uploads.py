"""Normal 28x28 images -> the uploads that people would send of them, prepared as served uploads are.

The score of a prepared image is calibrated on prepared images. There are none in a training set, so they are made: each
image is redrawn large with a pen and a paper, photographed or exported, and sent through `preprocess_digit`. Two kinds, as in
life: drawings from a screen (flat paper, clean edges) and photographs (uneven light, grain, lines of the page, JPEG).
Reads no files; the seed decides everything.
"""

import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from app.detection.imaging.preprocess import preprocess_digit
from app.detection.imaging.upload_features import FEATURE_NAMES

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Random = np.random.Generator

PHOTOGRAPHED = 0.6  # share of the uploads; the others are drawn on a screen


class Uploads(NamedTuple):
    """PreprocessedImage uploads, in the order of the images that they were made from."""

    images: Floats  # [N, 1, H, W] in [-1, 1]
    features: Floats  # [N, K], see app/detection/imaging/upload_features.py


def synthesise_uploads(images: Pixels, *, seed: int) -> Uploads:
    """uint8 [N, 28, 28], bright ink on 0 -> one prepared upload of each.

    Every image has its own stream of random numbers, drawn from `seed` and its place: equal seeds give equal bits, and a
    longer array begins as a shorter one does.
    """
    streams = np.random.SeedSequence(seed).spawn(len(images))
    size = images.shape[-1]
    prepared = [
        preprocess_digit(draw_upload(image, np.random.default_rng(stream)), size=size)
        for image, stream in zip(images, streams, strict=True)
    ]
    pictures = np.asarray([upload.image for upload in prepared], np.float32).reshape(-1, 1, size, size)
    seen = np.asarray([upload.features for upload in prepared], np.float32).reshape(-1, len(FEATURE_NAMES))
    return Uploads(pictures, seen)


def draw_upload(image: Pixels, random: Random) -> Pixels:
    """One image, uint8 [28, 28] -> an upload of it, grey uint8 [H, W] or RGB [H, W, 3], 30 to 170 pixels a side."""
    photographed = random.random() < PHOTOGRAPHED
    ink = _on_page(_redrawn(image, random), random)
    paper, pen = _colours(photographed, random)
    if photographed:
        page = np.maximum(_page_lines(ink.shape, random), _smudges(ink.shape, random))
        light = _light(ink.shape, random)
        scene = _mixed(np.maximum(ink * random.uniform(0.75, 1), page), paper, pen) * light[..., None]
        shot = _photographed(scene, blur=random.uniform(0, 0.012) * min(ink.shape), random=random)
    else:
        shot = np.rint(_mixed(ink, paper, pen)).astype(np.uint8)
    return shot[..., 0] if random.random() < 0.4 else shot


def _redrawn(image: Pixels, random: Random) -> Floats:
    """The ink alone, enlarged with crisp edges by a pen of another width: [h, w] in [0, 1]."""
    inked = image > 0
    rows, columns = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
    if len(rows) == 0:
        return np.zeros((24, 24), np.float32)
    cut = np.pad(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 2)
    scale = np.exp(random.uniform(np.log(1.3), np.log(5.0)))
    shape = max(4, round(cut.shape[1] * scale)), max(4, round(cut.shape[0] * scale))
    large = np.asarray(Image.fromarray(cut).resize(shape, Image.Resampling.BICUBIC), np.float32) / np.float32(255)
    level = random.uniform(0.25, 0.65)
    crispness = max(0.5 / level, 0.5 / (1 - level), scale * random.uniform(0.5, 1.2))  # paper stays 0, ink reaches 1
    redrawn: Floats = np.clip((large - np.float32(level)) * np.float32(crispness) + np.float32(0.5), 0, 1)
    return redrawn


def _on_page(ink: Floats, random: Random) -> Floats:
    """Ink [h, w] somewhere on a larger page [H, W]."""
    height, width = ink.shape
    longest = max(height, width)
    room = longest * random.uniform(0.15, 1.4, size=2)
    page = np.zeros((min(170, height + round(room[0])), min(170, width + round(room[1]))), np.float32)
    top = round((page.shape[0] - height) * np.clip(random.normal(0.5, 0.18), 0.05, 0.95))
    left = round((page.shape[1] - width) * np.clip(random.normal(0.5, 0.18), 0.05, 0.95))
    page[top : top + height, left : left + width] = ink
    return page


def _colours(photographed: bool, random: Random) -> tuple[Floats, Floats]:
    """Paper and pen, RGB [3] each in 0..255; now and then a light pen on a dark page."""
    if photographed:
        paper = random.uniform(130, 245) + random.normal(0, 6, 3)
        pen = paper * random.uniform(0.1, 0.6) + random.normal(0, 12, 3)
    else:
        paper = np.full(3, 255.0) if random.random() < 0.7 else random.uniform(200, 255, 3)
        pen = np.full(3, random.choice([0, 0, 40])) if random.random() < 0.6 else random.uniform(0, 140, 3)
    if random.random() < 0.15:
        paper, pen = 255 - paper, 255 - pen
    return np.clip(paper, 0, 255).astype(np.float32), np.clip(pen, 0, 255).astype(np.float32)


def _mixed(ink: Floats, paper: Floats, pen: Floats) -> Floats:
    return paper + ink[..., None] * (pen - paper)


def _light(shape: tuple[int, ...], random: Random) -> Floats:
    """A slope and a fall-off from some bright spot, [H, W] about 1."""
    y = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, shape[1], dtype=np.float32)[None]
    slope, spot = random.normal(0, 0.06, 2), random.uniform(-1, 1, 2)
    fall = random.uniform(0, 0.08) * ((y - spot[0]) ** 2 + (x - spot[1]) ** 2)
    light: Floats = (1 + slope[0] * y + slope[1] * x - fall).astype(np.float32)
    return light


def _page_lines(shape: tuple[int, ...], random: Random) -> Floats:
    """Borders of a cell at the sides, [H, W] in [0, 1]; most pages have none."""
    page = np.zeros(shape, np.float32)
    if random.random() > 0.35:
        return page
    for view in (page, page[::-1], page.T, page.T[::-1]):
        if random.random() < 0.5:
            start, thick = random.integers(0, 4), random.integers(1, 2 + len(view) // 20)
            view[start : start + thick] = random.uniform(0.4, 1.0)
    return page


def _smudges(shape: tuple[int, ...], random: Random) -> Floats:
    """Dirt, crumbs and the tips of neighbouring glyphs, [H, W] in [0, 1]; most pages have none."""
    page = np.zeros(shape, np.float32)
    if random.random() > 0.25:
        return page
    y, x = np.ogrid[: shape[0], : shape[1]]
    for _ in range(random.integers(1, 4)):
        middle, radii = random.uniform(0, 1, 2) * shape, random.uniform(0.008, 0.03, 2) * max(shape)
        inside = ((y - middle[0]) / radii[0]) ** 2 + ((x - middle[1]) / radii[1]) ** 2 < 1
        page[inside] = random.uniform(0.2, 0.9)
    return page


def _photographed(scene: Floats, blur: float, random: Random) -> Pixels:
    """Lens, grain, and half the time a JPEG: float [H, W, 3] in 0..255 -> uint8 [H, W, 3]."""
    sharp = Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8))
    seen = np.asarray(sharp.filter(ImageFilter.GaussianBlur(blur)), np.float32)
    grain = random.standard_normal(seen.shape[:2], dtype=np.float32)[..., None] * np.float32(random.gamma(2, 1.5))
    shot = np.clip(np.rint(seen + grain), 0, 255).astype(np.uint8)
    if random.random() < 0.5:
        return shot
    file = io.BytesIO()
    Image.fromarray(shot).save(file, "JPEG", quality=int(random.integers(50, 96)))
    return np.asarray(Image.frombytes("RGB", sharp.size, file.getvalue(), "jpeg", "RGB", ""))
