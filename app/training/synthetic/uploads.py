"""Synthetic uploads: large drawings and photographs made of normal 28x28 images, prepared as served uploads are.

The scores of prepared images must be calibrated on prepared images, and a training set has none. So each image is redrawn large
with a pen on a page and sent through `preprocess_digit`. There are two kinds: drawings from a screen (flat page, clean edges)
and photographs (uneven light, noise, lines of the page, JPEG). The seed decides everything.
"""

import io
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from app.detection.imaging.morphology import dilate, erode
from app.detection.imaging.preprocess import PreprocessedImage, preprocess_digit
from app.detection.imaging.upload_features import FEATURE_NAMES
from app.training.progress import Advance, no_steps
from app.training.synthetic.damage import damage
from app.training.synthetic.pictures import draw_picture

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Rng = np.random.Generator

PHOTOGRAPH_SHARE = 0.6  # of the uploads; the others are drawings from a screen
CROPPED_SHARE = 0.25  # tightly cropped
SMALL_SHARE = 0.4  # digits of 12 to 24 pixels
BILEVEL_SHARE = 0.35  # at one bit a pixel

MAX_DAMAGE = 0.05  # of a readable upload by the preparation, see damage.py
_TRIES = 5  # to draw a readable upload of one image
_CHUNK = 100  # images that a process prepares at a time, in about a second
_LEAST_CHUNKS = 4  # for which processes are started


class Uploads(NamedTuple):
    """Prepared uploads, in the order of the images that they were made from."""

    images: Pixels  # [N, 28, 28]
    features: Floats  # [N, K], see app/detection/imaging/upload_features.py


def synthesise_uploads(images: Pixels, *, seed: int, readable: bool = True, advance: Advance = no_steps) -> Uploads:
    """Make one prepared upload of each image, uint8 [N, 28, 28], 0 = background.

    Each image has its own random stream, derived from `seed` and its index: equal seeds give equal bits, and the first
    uploads do not depend on how many images follow. With `readable`, an upload of which preparation destroyed the digit (2 %)
    is drawn again: with such uploads among the normal ones, the threshold would let most anomalies pass.
    """
    return _prepare_all(partial(_upload, readable=readable), images, seed, advance)


def synthesise_pictures(count: int, *, size: int, seed: int, advance: Advance = no_steps) -> Uploads:
    """Make prepared uploads of pictures of things, as `synthesise_uploads` does of digits."""
    return _prepare_all(_picture, np.zeros((count, size, size), np.uint8), seed, advance)


def _upload(image: Pixels, rng: Rng, *, readable: bool) -> PreprocessedImage:
    for _ in range(_TRIES if readable else 1):
        prepared = preprocess_digit(draw_upload(image, rng), size=len(image))
        if not readable or damage(prepared.image, image / np.float32(255)) <= MAX_DAMAGE:
            break
    return prepared


def _picture(canvas: Pixels, rng: Rng) -> PreprocessedImage:
    return preprocess_digit(draw_picture(rng), size=len(canvas))


def _prepare_all(prepare: Callable[[Pixels, Rng], PreprocessedImage], images: Pixels, seed: int, advance: Advance) -> Uploads:
    """Call `prepare` for each image with a random stream of its own; for many images in one process for each CPU."""
    chunks = [range(start, min(start + _CHUNK, len(images))) for start in range(0, len(images), _CHUNK)]
    arguments = [(prepare, images[chunk.start : chunk.stop], seed, chunk) for chunk in chunks]
    if len(chunks) < _LEAST_CHUNKS:
        parts = [_report_progress(_prepare_chunk(*each), advance) for each in arguments]
    else:
        with ProcessPoolExecutor(mp_context=get_context("forkserver")) as pool:
            parts = [_report_progress(part, advance) for part in pool.map(_prepare_chunk, *zip(*arguments, strict=True))]
    size = images.shape[-1]
    empty = Uploads(np.zeros((0, size, size), np.uint8), np.zeros((0, len(FEATURE_NAMES)), np.float32))
    return Uploads(*(np.concatenate(column) for column in zip(empty, *parts, strict=True)))


def _report_progress(part: Uploads, advance: Advance) -> Uploads:
    advance(len(part.images))
    return part


def _prepare_chunk(prepare: Callable[[Pixels, Rng], PreprocessedImage], images: Pixels, seed: int, indices: range) -> Uploads:
    streams = [np.random.SeedSequence(seed, spawn_key=(index,)) for index in indices]
    done = [prepare(image, np.random.default_rng(stream)) for image, stream in zip(images, streams, strict=True)]
    return Uploads(np.stack([each.image for each in done]), np.stack([np.asarray(each.features) for each in done]))


def draw_upload(image: Pixels, rng: Rng) -> Pixels:
    """Draw an upload of one image, uint8 [28, 28]: grey uint8 [H, W] or RGB [H, W, 3], 4 to 170 pixels a side."""
    small, bilevel = rng.random() < SMALL_SHARE, rng.random() < BILEVEL_SHARE
    photographed, cropped = not bilevel and rng.random() < PHOTOGRAPH_SHARE, rng.random() < CROPPED_SHARE
    cropped &= not (small and photographed)  # nobody could read most of these
    side = _log_uniform(11.5, 24, rng) if small else _log_uniform(24, 110, rng)
    ink = _wear(_thin(_redraw_large(image, side, rng), rng), rng)
    ink = _crop(ink, rng) if cropped else _place_on_page(ink, rng)
    if bilevel:
        return _scan_one_bit(ink, rng)
    paper, pen = _choose_colours(photographed, rng)
    has_lines = not small and not cropped
    if photographed:
        page = np.maximum(_draw_page_lines(ink.shape, rng), _smudges(ink.shape, rng)) if has_lines else ink
        light = _illumination(ink.shape, rng)
        scene = _blend(np.maximum(ink * rng.uniform(0.75, 1), page), paper, pen) * light[..., None]
        shot = _photograph(scene, blur=rng.uniform(0, 0.012) * min(ink.shape), rng=rng)
    else:
        page = _rules(ink.shape, rng) if has_lines else ink
        shot = np.rint(_blend(np.maximum(ink, page), paper, pen)).astype(np.uint8)
    return shot[..., 0] if rng.random() < 0.4 else shot


def _log_uniform(low: float, high: float, rng: Rng) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _redraw_large(image: Pixels, side: float, rng: Rng) -> Floats:
    """Resize the strokes to a longest side of about `side`, with crisp edges and another stroke width: [h, w] in [0, 1]."""
    inked = image > 0
    rows, columns = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
    if len(rows) == 0:
        return np.zeros((24, 24), np.float32)
    cut = np.pad(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 2)
    scale = side / (max(cut.shape) - 4)
    shape = max(4, round(cut.shape[1] * scale)), max(4, round(cut.shape[0] * scale))
    large = np.asarray(Image.fromarray(cut).resize(shape, Image.Resampling.BICUBIC), np.float32) / np.float32(255)
    level = rng.uniform(0.25, 0.65) if side > 24 else rng.uniform(0.4, 0.55)
    crispness = max(0.5 / level, 0.5 / (1 - level), scale * rng.uniform(0.5, 1.2))  # paper stays 0, ink reaches 1
    redrawn: Floats = np.clip((large - np.float32(level)) * np.float32(crispness) + np.float32(0.5), 0, 1)
    return redrawn


def _thin(ink: Floats, rng: Rng) -> Floats:
    """The ink [h, w] of a thinner pen for 30 % of the larger digits; strokes that are thin already stay."""
    if max(ink.shape) < 48 or rng.random() > 0.3:
        return ink
    radius = round(max(ink.shape) * rng.uniform(0, 0.04))
    eroded = erode(ink, radius)
    thinned: Floats = np.maximum(eroded, ink - dilate(eroded, radius))
    return thinned


def _wear(ink: Floats, rng: Rng) -> Floats:
    """The ink [h, w] of a pencil or a dry pen (12 %), of a pen that fails at a few places (14 %), or as it is."""
    kind = rng.random()
    if kind < 0.12:
        cells = max(3, round(max(ink.shape) / rng.uniform(1.5, 7)))
        cover = Image.fromarray(rng.random((cells, cells), dtype=np.float32)).resize(ink.shape[::-1], Image.Resampling.BILINEAR)
        least = rng.uniform(0.3, 0.8)
        return ink * (np.float32(least) + np.float32(1 - least) * np.asarray(cover))
    if kind < 0.26 and max(ink.shape) > 28:
        y, x = np.indices(ink.shape, dtype=np.float32)
        ink = ink.copy()
        for _ in range(rng.integers(1, 4)):
            at, angle, reach = rng.uniform(0.1, 0.9, 2) * ink.shape, rng.uniform(0, np.pi), 0.2 * max(ink.shape)
            along = np.abs((y - at[0]) * np.sin(angle) + (x - at[1]) * np.cos(angle))
            beside = np.abs((y - at[0]) * np.cos(angle) - (x - at[1]) * np.sin(angle))
            ink[(along < rng.uniform(0.01, 0.025) * max(ink.shape)) & (beside < reach)] = 0
    return ink


def _scan_one_bit(ink: Floats, rng: Rng) -> Pixels:
    """Scan ink [H, W] at one bit a pixel, uint8 0 or 255: by a threshold, or 8 % by error diffusion."""
    grey = np.clip(240 - 220 * ink + rng.normal(0, rng.gamma(2, 4), ink.shape), 0, 255).astype(np.uint8)
    if min(ink.shape) > 40 and rng.random() < 0.08:
        bits = np.asarray(Image.fromarray(grey).convert("1"))
    else:
        bits = np.asarray(Image.fromarray(grey).filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.7)))) > rng.uniform(100, 155)
    bits = bits != (rng.random() < 0.15)  # white on black
    scanned: Pixels = bits.astype(np.uint8) * np.uint8(255)
    return scanned


def _crop(ink: Floats, rng: Rng) -> Floats:
    """Crop ink [h, w] to a margin of at most an eighth of its length on each side, as segmenters do."""
    inked = ink > 0.3
    rows, columns = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
    if len(rows):
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.pad(ink, rng.integers(0, 1 + round(0.12 * max(ink.shape)), size=(2, 2)))


def _place_on_page(ink: Floats, rng: Rng) -> Floats:
    """Place ink [h, w] at a random position on a larger page [H, W]."""
    height, width = ink.shape
    longest = max(height, width)
    margin = longest * rng.uniform(0.15, 1.4, size=2)
    sides = [max(side, min(170, side + round(around))) for side, around in zip(ink.shape, margin, strict=True)]
    page = np.zeros(sides, np.float32)
    top = round((page.shape[0] - height) * np.clip(rng.normal(0.5, 0.18), 0.05, 0.95))
    left = round((page.shape[1] - width) * np.clip(rng.normal(0.5, 0.18), 0.05, 0.95))
    page[top : top + height, left : left + width] = ink
    return page


def _choose_colours(photographed: bool, rng: Rng) -> tuple[Floats, Floats]:
    """Choose paper and pen colours, RGB [3] each in 0..255; 15 % are a light pen on dark paper."""
    if photographed:
        paper = rng.uniform(130, 245) + rng.normal(0, 6, 3)
        pen = paper * rng.uniform(0.1, 0.6) + rng.normal(0, 12, 3)
    else:
        paper = np.full(3, 255.0) if rng.random() < 0.7 else rng.uniform(200, 255, 3)
        pen = np.full(3, rng.choice([0, 0, 40])) if rng.random() < 0.6 else rng.uniform(0, 140, 3)
    if rng.random() < 0.15:
        paper, pen = 255 - paper, 255 - pen
    return np.clip(paper, 0, 255).astype(np.float32), np.clip(pen, 0, 255).astype(np.float32)


def _blend(ink: Floats, paper: Floats, pen: Floats) -> Floats:
    return paper + ink[..., None] * (pen - paper)


def _illumination(shape: tuple[int, ...], rng: Rng) -> Floats:
    """Uneven light: a linear gradient and a fall-off from a bright spot, [H, W] around 1."""
    y = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, shape[1], dtype=np.float32)[None]
    gradient, spot = rng.normal(0, 0.06, 2), rng.uniform(-1, 1, 2)
    fall_off = rng.uniform(0, 0.08) * ((y - spot[0]) ** 2 + (x - spot[1]) ** 2)
    light: Floats = (1 + gradient[0] * y + gradient[1] * x - fall_off).astype(np.float32)
    return light


def _draw_page_lines(shape: tuple[int, ...], rng: Rng) -> Floats:
    """Lines along the sides of the page, as the borders of a form field: [H, W] in [0, 1]; 85 % of the pages have none."""
    page = np.zeros(shape, np.float32)
    if rng.random() > 0.15:
        return page
    for view in (page, page[::-1], page.T, page.T[::-1]):
        if rng.random() < 0.5:
            start, thick = rng.integers(0, 4), rng.integers(1, 2 + len(view) // 20)
            view[start : start + thick] = rng.uniform(0.4, 1.0)
    return page


def _rules(shape: tuple[int, ...], rng: Rng) -> Floats:
    """The lines of ruled or squared paper, [H, W] in [0, 1]; 92 % of the pages have none."""
    page = np.zeros(shape, np.float32)
    if min(shape) < 50 or rng.random() > 0.08:
        return page
    step, thick, level = round(max(shape) * rng.uniform(0.1, 0.3)), rng.integers(1, 3), rng.uniform(0.1, 0.6)
    for view in (page, page.T)[: rng.integers(1, 3)]:
        first = rng.integers(0, step)
        for offset in range(thick):
            view[first + offset :: step] = level
    return page


def _smudges(shape: tuple[int, ...], rng: Rng) -> Floats:
    """Small dark ellipses, as dirt or tips of neighbouring glyphs: [H, W] in [0, 1]; 75 % of the pages have none."""
    page = np.zeros(shape, np.float32)
    if rng.random() > 0.25:
        return page
    y, x = np.ogrid[: shape[0], : shape[1]]
    for _ in range(rng.integers(1, 4)):
        centre, radii = rng.uniform(0, 1, 2) * shape, rng.uniform(0.008, 0.03, 2) * max(shape)
        inside = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 < 1
        page[inside] = rng.uniform(0.2, 0.9)
    return page


def _photograph(scene: Floats, blur: float, rng: Rng) -> Pixels:
    """Blur the scene, float [H, W, 3] in 0..255, add noise and compress half of them as JPEG: uint8 [H, W, 3]."""
    sharp = Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8))
    blurred = np.asarray(sharp.filter(ImageFilter.GaussianBlur(blur)), np.float32)
    noise = rng.standard_normal(blurred.shape[:2], dtype=np.float32)[..., None] * np.float32(rng.gamma(2, 1.5))
    shot = np.clip(np.rint(blurred + noise), 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        return shot
    file = io.BytesIO()
    Image.fromarray(shot).save(file, "JPEG", quality=int(rng.integers(50, 96)))
    return np.asarray(Image.frombytes("RGB", sharp.size, file.getvalue(), "jpeg", "RGB", ""))
