"""Pixels of an upload -> the 28x28 that MNIST's makers would have made of it, and what was seen on the way.

After LeCun et al., Gradient-based learning applied to document recognition, 1998, section III-A: bright ink on dark, the
longest side of the ink scaled to 20 pixels with its aspect kept, the centre of mass in the middle of 28x28. What they did
not need comes before: uneven light, grey paper, coloured ink, cell borders, several pieces, pens of any width.
Numpy and Pillow only; knows neither files nor models. Every step accepts any picture and none divides by nothing.

Warnings, in the words of the API:
    blank           no ink was found; the result is an empty image
    low_contrast    ink and paper differ by less than a tenth of the range, or by little more than the paper's own grain
    touches_border  the digit runs off the picture
    several_glyphs  more than one glyph of a size: two digits, a word, clutter
    upscaled        the digit measures less than 12 pixels
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.detection.imaging.foreground import Ink, read_ink, resized
from app.detection.imaging.morphology import Mask, Pieces, find_pieces, grow, shrink, sweep
from app.detection.imaging.upload_features import PreprocessStats, stroke_width, upload_features

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

WORKING_SIDE = 192  # longest side that is analysed: a digit on a sixth of it still has more pixels than the result
MIN_CONTRAST = 0.03  # contrast that counts as ink: 8 of 256 grey levels
USUAL_WIDTHS = (1.75, 3.3)  # of strokes, in pixels of the 20-pixel box: the middle 80 % of MNIST's training set


class PreprocessedImage(NamedTuple):
    """One image as the model reads it, and what was done and seen on the way."""

    image: Pixels  # uint8 [28, 28], 0 = background, 255 = ink
    preprocess: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    features: Floats | None = None  # [K], see features.py; None for an image left as it is


class Glyph(NamedTuple):
    """The digit, found."""

    strokes: Floats  # [H, W] in [0, 1], the whole working picture; 0 off the digit
    box: tuple[int, int, int, int]  # left, top, right, bottom of the strokes
    sight: PreprocessStats
    warnings: tuple[str, ...]
    lines_removed: bool


def preprocess_digit(pixels: Pixels, *, size: int = 28, steps: tuple[str, ...] = ()) -> PreprocessedImage:
    """Prepare a picture, grey uint8 [H, W] or RGB [H, W, 3] of any size from 1x1, as MNIST's makers did.

    `steps` names what was done to it before. Returns a `PreprocessedImage` with its evidence; never raises, never NaN.
    """
    work = _to_working_size(pixels)
    ink = read_ink(work)
    glyph = _find_glyph(ink)
    if glyph is None:
        empty = np.zeros((size, size), np.float32)
        return PreprocessedImage(
            _to_uint8(empty), (*steps, "blank"), ("blank",), upload_features(empty, PreprocessStats(contrast=ink.strength))
        )
    fitted, rewritten, sight = _fit(glyph, size)
    done = ("shrunk",) * (work.shape != pixels.shape) + ("inverted",) * ink.inverted
    done += ("lines_removed",) * glyph.lines_removed + ("cropped",) + rewritten + ("centred",)
    seen = upload_features(fitted, sight)
    return PreprocessedImage(_to_uint8(fitted), (*steps, *done), glyph.warnings, seen)


def _to_uint8(values: Floats) -> Pixels:
    """[H, W] in [0, 1] -> uint8 [H, W]."""
    return np.rint(values * 255).astype(np.uint8)


def _to_working_size(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    scale = WORKING_SIDE / max(height, width)
    if scale >= 1:
        return pixels
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(target, Image.Resampling.BOX, reducing_gap=2.0))


# ------------------------------------------------------------------------------------------------------------- the digit


def _find_glyph(ink: Ink) -> Glyph | None:
    """Threshold, take away what belongs to the page, threshold the rest, choose the pieces of the digit."""
    floor = max(MIN_CONTRAST, min(4 * ink.noise, 0.5 * ink.strength))
    if ink.strength < floor:
        return None
    first = ink.amount > max(0.6 * _otsu(ink.amount), floor)
    lines = _page_lines(first)
    page = lines | _edge_pieces(find_pieces(first & ~lines, ink.amount))
    rest = np.where(grow(page.astype(np.float32), 1) > 0, np.float32(0), ink.amount) if page.any() else ink.amount
    if float(rest.max(initial=0.0)) < floor:
        return None
    threshold = max(_otsu(rest), floor)
    pieces = find_pieces(rest > threshold, rest)
    chosen = _choose(pieces)
    return _develop(ink, rest, pieces, chosen, threshold, float(ink.amount[page].sum()))


def _otsu(amount: Floats) -> float:
    """The threshold that parts a histogram best (Otsu, A threshold selection method from gray-level histograms, 1979)."""
    top = float(amount.max())
    counts = np.histogram(amount, bins=64, range=(0.0, top or 1.0))[0].astype(np.float64)
    below = np.cumsum(counts)
    first = np.cumsum(counts * np.arange(64))
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (first[-1] * below / below[-1] - first) ** 2 / (below * above)
    return (float(np.nanargmax(np.append(between[:-1], 0.0))) + 1) / 64 * top


def _page_lines(mask: Mask) -> Mask:
    """Straight lines across the whole picture: ruled paper and the borders of a cell."""
    return _lines_across(mask) | _lines_across(mask.T).T


def _lines_across(mask: Mask) -> Mask:
    """Rows, a little slant allowed, of which at least 85 % is covered by the mask."""
    height, width = mask.shape
    if height < 16 or width < 16:
        return np.zeros_like(mask)
    slack = max(1, round(0.02 * height))
    rows = sweep(mask, np.logical_or, slack).mean(axis=1) >= 0.85
    thickness = _stretches(rows)
    across: Mask = mask & (rows & (thickness <= 0.2 * height))[:, None]
    return across


def _stretches(rows: Mask) -> NDArray[np.intp]:
    """Length of the stretch of True that each element lies in."""
    ends = np.flatnonzero(np.diff(np.concatenate([[False], rows, [False]]).astype(np.int8)))
    lengths = np.zeros(len(rows), np.intp)
    for start, end in zip(ends[::2], ends[1::2], strict=True):
        lengths[start:end] = end - start
    return lengths


def _edge_pieces(pieces: Pieces) -> Mask:
    """Pieces that hug the edge of the picture: borders cut off, neighbours' tips, shadows of the cell."""
    height, width = pieces.labels.shape
    reach_y = np.minimum(pieces.bottom, height - pieces.top) / height
    reach_x = np.minimum(pieces.right, width - pieces.left) / width
    return pieces.select(_touching_edge(pieces) & (np.minimum(reach_x, reach_y) <= 0.2))


def _touching_edge(pieces: Pieces) -> Mask:
    height, width = pieces.labels.shape
    touching: Mask = (pieces.top <= 0) | (pieces.left <= 0) | (pieces.bottom >= height) | (pieces.right >= width)
    return touching


def _choose(pieces: Pieces) -> Mask:
    """The heaviest piece near the middle, and its neighbours: bars and broken strokes."""
    height, width = pieces.labels.shape
    off_x = (pieces.left + pieces.right) / (2 * width) - 0.5
    off_y = (pieces.top + pieces.bottom) / (2 * height) - 0.5
    worth = pieces.mass * (1.2 - np.hypot(off_x, off_y)) * np.where(_touching_edge(pieces), 0.4, 1.0)
    chosen = np.zeros(len(worth), np.bool_)
    chosen[np.argmax(worth)] = True
    welcome = ~_touching_edge(pieces) | _touching_edge(pieces)[np.argmax(worth)]
    for _ in range(3):
        gap = 0.12 * max(_extent(pieces, chosen))
        left, top, right, bottom = _bounds(pieces, chosen)
        close = (pieces.left < right + gap) & (pieces.right > left - gap)
        close &= (pieces.top < bottom + gap) & (pieces.bottom > top - gap)
        chosen |= close & welcome & (pieces.mass > 0.03 * pieces.mass[chosen].sum())
    return chosen


def _bounds(pieces: Pieces, chosen: Mask) -> tuple[int, int, int, int]:
    return (
        int(pieces.left[chosen].min()),
        int(pieces.top[chosen].min()),
        int(pieces.right[chosen].max()),
        int(pieces.bottom[chosen].max()),
    )


def _extent(pieces: Pieces, chosen: Mask) -> tuple[int, int]:
    left, top, right, bottom = _bounds(pieces, chosen)
    return right - left, bottom - top


def _develop(ink: Ink, rest: Floats, pieces: Pieces, chosen: Mask, threshold: float, page: float) -> Glyph:
    """Chosen pieces -> strokes in [0, 1], with their soft edges, and what was seen."""
    solid = pieces.select(chosen)
    full = float(np.percentile(rest[solid], 85))
    low = min(2 * ink.noise, 0.3 * full)
    reach = max(1, round(0.03 * max(_extent(pieces, chosen))))
    near = grow(solid.astype(np.float32), reach + 1)
    strokes = np.clip((rest - low) / max(full - low, 1e-6), 0, 1) * near
    rows, columns = np.flatnonzero((strokes > 0.1).any(axis=1)), np.flatnonzero((strokes > 0.1).any(axis=0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    kept = float(pieces.mass[chosen].sum())
    left_out = float(pieces.mass[~chosen & ~_touching_edge(pieces)].sum())  # what the frame cut off is a neighbour's
    sight = PreprocessStats.of(ink.amount, rest, solid, near > 0, box, full)._replace(
        contrast=full,
        noise=ink.grain / full,
        light=ink.light / full,
        colour=ink.colour / full,
        left_out=left_out / kept,
        page=page / kept,
        pieces=int(chosen.sum()),
        extent=max(box[2] - box[0], box[3] - box[1]),
    )
    return Glyph(strokes, box, sight, _suspicions(pieces, chosen, box, full < max(0.1, 6 * ink.noise)), page > 0)


def _suspicions(pieces: Pieces, chosen: Mask, box: tuple[int, int, int, int], faint: bool) -> tuple[str, ...]:
    kept = float(pieces.mass[chosen].sum())
    rival = float(pieces.mass[~chosen & ~_touching_edge(pieces)].max(initial=0.0))
    second = float(np.sort(pieces.mass[chosen])[-2]) if chosen.sum() > 1 else 0.0
    found = {
        "low_contrast": faint,
        "touches_border": bool(_touching_edge(pieces)[chosen].any()),
        "several_glyphs": max(rival, second) > 0.35 * kept,
        "upscaled": max(box[2] - box[0], box[3] - box[1]) < 12,
    }
    return tuple(name for name, present in found.items() if present)


# --------------------------------------------------------------------------------------------------------- to 28x28


def _fit(glyph: Glyph, size: int) -> tuple[Floats, tuple[str, ...], PreprocessStats]:
    """Strokes -> [size, size] in [0, 1], what was done to the pen, and what was seen, the pen's width before that included."""
    side = round(size * 20 / 28)
    left, top, right, bottom = glyph.box
    cut = glyph.strokes[top:bottom, left:right]
    fitted = _to_box(cut, side)
    width = stroke_width(fitted) * 20 / side
    sight = glyph.sight._replace(width=width)
    wanted = float(np.clip(width, *USUAL_WIDTHS))
    if max(cut.shape) <= side + 4 or wanted == width:  # from so few pixels the pen cannot be told from the raster
        return _centred(fitted, size), (), sight
    redrawn = _redraw(cut, (wanted - width) * side / 20, side)
    return _centred(redrawn, size), ("thickened" if wanted > width else "thinned",), sight


def _to_box(strokes: Floats, side: int) -> Floats:
    """Longest side to `side` pixels, aspect kept, full ink at 1."""
    height, width = strokes.shape
    scale = side / max(height, width)
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    how = Image.Resampling.BILINEAR if scale > 1 else Image.Resampling.BOX
    out = resized(strokes, *shape, how)
    top = float(out.max())
    return np.clip(out / top, 0, 1) if top > 0 else out


def _redraw(strokes: Floats, change: float, side: int) -> Floats:
    """The same glyph by a pen that is `change` pixels of the result wider (or narrower, if negative).

    Done at three times the result's scale, between two whole radii.
    """
    large = np.pad(_to_box(strokes, 3 * side), 3 * 3)
    ridge = large[(large > 0.2) & (large >= grow(large, 1))]
    if change > 0 and ridge.size:  # a hairline smeared over pixels never reaches full ink, its crossings do
        large = np.clip(large / np.median(ridge), 0, 1)
    radius = min(abs(change) * 1.5, 9.0)
    whole, part = int(radius), np.float32(radius % 1)
    act = grow if change > 0 else shrink
    inner = act(large, whole)
    moved = (1 - part) * inner + part * act(inner, 1)
    rows, columns = np.flatnonzero((moved > 0.1).any(axis=1)), np.flatnonzero((moved > 0.1).any(axis=0))
    if len(rows) == 0:
        return _to_box(strokes, side)
    return _to_box(moved[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], side)


def _centred(strokes: Floats, size: int) -> Floats:
    """The centre of mass in the middle, by whole pixels as in MNIST."""
    height, width = strokes.shape
    total = max(float(strokes.sum()), 1e-6)
    y = round(size / 2 - float(strokes.sum(axis=1) @ np.arange(height)) / total)
    x = round(size / 2 - float(strokes.sum(axis=0) @ np.arange(width)) / total)
    y, x = min(max(y, 0), size - height), min(max(x, 0), size - width)
    canvas = np.zeros((size, size), np.float32)
    canvas[y : y + height, x : x + width] = strokes
    return canvas
