"""Pixels of an upload -> the 28x28 that MNIST's makers would have made of it, and what was seen on the way.

After LeCun et al., Gradient-based learning applied to document recognition, 1998, section III-A: bright ink on dark, the
longest side of the ink scaled to 20 pixels with its aspect kept, the centre of mass in the middle of 28x28. What they did
not need comes before: uneven light, grey paper, coloured ink, cell borders, several pieces, pens of any width.
Numpy and Pillow only; knows neither files nor models. Every step accepts any picture and none divides by nothing.

Warnings, in the words of the API:
    blank           no ink was found; the result is an empty image
    low_contrast    ink and paper differ by less than a tenth of the range
    touches_border  the digit runs off the picture
    several_glyphs  more than one glyph of a size: two digits, a word, clutter
    upscaled        the digit measures less than 12 pixels
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from app.detection.evidence import Sight, evidence, stroke_width
from app.detection.pieces import Mask, Pieces, continued, find_pieces, grow, shrink, sweep, window_extreme

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

WORKING_SIDE = 192  # longest side that is analysed: a digit on a sixth of it still has more pixels than the result
GRID_SIDE = 48  # longest side on which the light is estimated
USUAL_WIDTHS = (1.75, 3.3)  # of strokes, in pixels of the 20-pixel box: the middle 80 % of MNIST's training set


class Prepared(NamedTuple):
    """One image as the model reads it, and what was done and seen on the way."""

    image: Floats  # [1, 28, 28] in [-1, 1], -1 background
    preprocess: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    evidence: Floats | None = None  # [K], see evidence.py; None for an image left as it is


class Ink(NamedTuple):
    """A picture as ink on paper."""

    amount: Floats  # [H, W], 0 = paper; in units of the full range of the picture's type
    noise: float  # the paper's standard deviation, same units
    grain: float  # what it was before any smoothing
    light: float  # the paper's range from its darkest to its brightest part, same units
    colour: float  # root mean square of the colour that the mixture of ink and paper does not explain, same units
    inverted: bool  # the ink was darker than the paper


class Glyph(NamedTuple):
    """The digit, found."""

    strokes: Floats  # [H, W] in [0, 1], the whole working picture; 0 off the digit
    box: tuple[int, int, int, int]  # left, top, right, bottom of the strokes
    sight: Sight
    warnings: tuple[str, ...]
    lines_removed: bool


def prepare_digit(pixels: Pixels, *, size: int = 28, steps: tuple[str, ...] = ()) -> Prepared:
    """Prepare a picture, grey uint8 [H, W] or RGB [H, W, 3] of any size from 1x1, as MNIST's makers did.

    `steps` names what was done to it before. Returns a `Prepared` with its evidence; never raises, never NaN.
    """
    work = _to_working_size(pixels)
    ink = _ink(work)
    glyph = _find_glyph(ink)
    if glyph is None:
        empty = np.zeros((size, size), np.float32)
        return Prepared(_signed(empty), (*steps, "blank"), ("blank",), evidence(empty, Sight(contrast=_strength(ink))))
    fitted, rewritten, width = _fit(glyph, size)
    done = ("shrunk",) * (work.shape != pixels.shape) + ("inverted",) * ink.inverted
    done += ("lines_removed",) * glyph.lines_removed + ("cropped",) + rewritten + ("centred",)
    seen = evidence(fitted, glyph.sight._replace(width=width))
    return Prepared(_signed(fitted), (*steps, *done), glyph.warnings, seen)


def _signed(values: Floats) -> Floats:
    """[0, 1] -> [-1, 1] on the 256 levels that a PNG of it would have: [1, H, W]."""
    return np.rint(values * 255)[None].astype(np.float32) / np.float32(127.5) - np.float32(1)


def _to_working_size(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    scale = WORKING_SIDE / max(height, width)
    if scale >= 1:
        return pixels
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(target, Image.Resampling.BOX, reducing_gap=2.0))


# ---------------------------------------------------------------------------------------------------------- ink and paper


def _ink(pixels: Pixels) -> Ink:
    """Read a picture as ink on paper; grain that would drown the ink is smoothed first, and still reported."""
    ink = _read(pixels)
    for radius in (1.0, 2.0):
        if ink.noise < 0.1 * _strength(ink):
            return ink
        smooth = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius))
        ink = _read(np.asarray(smooth))._replace(grain=ink.grain)
    return ink


def _read(pixels: Pixels) -> Ink:
    plane, colour = _contrast_plane(pixels.astype(np.float32) / np.float32(255))
    inverted = _ink_is_dark(plane)
    if inverted:
        plane = -plane
    paper = _paper(plane)
    amount = plane - paper
    level = float(np.median(amount))
    noise = 1.4826 * float(np.median(np.abs(amount - level)))
    light = float(np.percentile(paper, 95) - np.percentile(paper, 5))
    return Ink(np.maximum(amount - level, 0), noise, noise, light, colour, inverted)


def _contrast_plane(planes: Floats) -> tuple[Floats, float]:
    """[H, W] or [H, W, 3] -> the one plane in which ink and paper differ most, and the colour that it leaves out.

    The plane is the first principal axis of the colours, so that yellow ink on white is read from the blue.
    """
    if planes.ndim == 2:
        return planes, 0.0
    colours = planes.reshape(-1, 3) - np.median(planes.reshape(-1, 3), axis=0)
    if not np.any(colours[:, 0] != colours[:, 1]) and not np.any(colours[:, 1] != colours[:, 2]):
        return planes[..., 0], 0.0
    values, axes = np.linalg.eigh(colours.T @ colours)
    axis = axes[:, -1] * np.sign(axes[:, -1].sum() or 1)
    rest = np.sqrt(max(float(values[:2].sum()), 0.0) / len(colours) / 3)
    plane = (planes @ (axis / np.abs(axis).sum())).astype(np.float32)
    return plane, float(rest)


def _ink_is_dark(plane: Floats) -> bool:
    """Ink is the rarer side: the sign of the third moment about the light; of the rim's level where that is undecided."""
    small = _reduced(plane)
    local = small - _blurred(small, max(small.shape) / 4)
    spread = float(np.mean(local**2)) ** 1.5
    skew = float(np.mean(local**3)) / spread if spread > 1e-9 else 0.0
    if abs(skew) > 0.3:
        return skew < 0
    rim = np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]])
    return float(np.median(rim)) > float(small.mean())


def _paper(plane: Floats) -> Floats:
    """The light on the paper, [H, W]: what remains when everything brighter and narrower than a window is taken away."""
    small = _reduced(plane)
    reach = max(1, round(0.2 * max(small.shape)))
    opened = window_extreme(window_extreme(small, np.minimum, reach), np.maximum, reach)
    return _resized(_blurred(opened, reach / 2), plane.shape[1], plane.shape[0])


def _reduced(plane: Floats) -> Floats:
    height, width = plane.shape
    scale = min(1.0, GRID_SIDE / max(height, width))
    return _resized(plane, max(1, round(width * scale)), max(1, round(height * scale)), Image.Resampling.BOX)


def _resized(plane: Floats, width: int, height: int, how: Image.Resampling = Image.Resampling.BILINEAR) -> Floats:
    if plane.shape == (height, width):
        return plane
    return np.asarray(Image.fromarray(plane).resize((width, height), how))


def _blurred(plane: Floats, radius: float) -> Floats:
    """Box mean, twice over (close to a Gaussian), edges continued."""
    reach = max(1, round(radius))
    for _ in range(2):
        plane = _box_mean(_box_mean(plane, reach).T, reach).T
    return plane


def _box_mean(plane: Floats, reach: int) -> Floats:
    sums = np.cumsum(continued(plane, reach + 1, reach), axis=0, dtype=np.float64)
    return ((sums[2 * reach + 1 :] - sums[: -2 * reach - 1]) / (2 * reach + 1)).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------- the digit


def _strength(ink: Ink) -> float:
    return float(ink.amount.max(initial=0.0))


def _find_glyph(ink: Ink) -> Glyph | None:
    """Threshold, take away what belongs to the page, threshold the rest, choose the pieces of the digit."""
    floor = max(0.03, 4 * ink.noise)
    if _strength(ink) < floor:
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
    return mask & (rows & (thickness <= 0.2 * height))[:, None]


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
    near = 0.2
    thin = np.minimum.reduce(
        [pieces.bottom / height, 1 - pieces.top / height, pieces.right / width, 1 - pieces.left / width]
    )
    touching = _touching_edge(pieces)
    return pieces.select(touching & (thin <= near))


def _touching_edge(pieces: Pieces) -> Mask:
    height, width = pieces.labels.shape
    return (pieces.top <= 0) | (pieces.left <= 0) | (pieces.bottom >= height) | (pieces.right >= width)


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
    left_out = float(pieces.mass[~chosen].sum())
    sight = Sight.of(ink.amount, rest, solid, near > 0, box, full)._replace(
        contrast=full,
        noise=ink.grain / full,
        light=ink.light / full,
        colour=ink.colour / full,
        left_out=left_out / kept,
        page=page / kept,
        pieces=int(chosen.sum()),
    )
    return Glyph(strokes, box, sight, _suspicions(pieces, chosen, box, full), page > 0)


def _suspicions(pieces: Pieces, chosen: Mask, box: tuple[int, int, int, int], full: float) -> tuple[str, ...]:
    kept = float(pieces.mass[chosen].sum())
    rival = float(pieces.mass[~chosen & ~_touching_edge(pieces)].max(initial=0.0))
    second = float(np.sort(pieces.mass[chosen])[-2]) if chosen.sum() > 1 else 0.0
    found = {
        "low_contrast": full < 0.1,
        "touches_border": bool(_touching_edge(pieces)[chosen].any()),
        "several_glyphs": max(rival, second) > 0.35 * kept,
        "upscaled": max(box[2] - box[0], box[3] - box[1]) < 12,
    }
    return tuple(name for name, present in found.items() if present)


# --------------------------------------------------------------------------------------------------------- to 28x28


def _fit(glyph: Glyph, size: int) -> tuple[Floats, tuple[str, ...], float]:
    """Strokes -> [size, size] in [0, 1], what was done to the pen, and the pen's width before that."""
    side = round(size * 20 / 28)
    left, top, right, bottom = glyph.box
    cut = glyph.strokes[top:bottom, left:right]
    fitted = _to_box(cut, side)
    width = stroke_width(fitted) * 20 / side
    wanted = float(np.clip(width, *USUAL_WIDTHS))
    if max(cut.shape) <= side + 4 or wanted == width:  # from so few pixels the pen cannot be told from the raster
        return _centred(fitted, size), (), width
    redrawn = _redraw(cut, (wanted - width) * side / 20, side)
    return _centred(redrawn, size), ("thickened" if wanted > width else "thinned",), width


def _to_box(strokes: Floats, side: int) -> Floats:
    """Longest side to `side` pixels, aspect kept, full ink at 1."""
    height, width = strokes.shape
    scale = side / max(height, width)
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    how = Image.Resampling.BILINEAR if scale > 1 else Image.Resampling.BOX
    out = _resized(strokes, *shape, how)
    top = float(out.max())
    return np.clip(out / top, 0, 1) if top > 0 else out


def _redraw(strokes: Floats, change: float, side: int) -> Floats:
    """The same glyph by a pen that is `change` pixels of the result wider (or narrower, if negative).

    Done at three times the result's scale, between two whole radii.
    """
    large = np.pad(_to_box(strokes, 3 * side), 3 * 3)
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
