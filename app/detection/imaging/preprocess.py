"""Preprocesses an upload as the digits of MNIST were, and measures the upload features.

After LeCun et al., Gradient-based learning applied to document recognition, 1998, section III-A: bright ink on dark, the
longest side of the ink scaled to 20 pixels with its aspect kept, the centre of mass in the middle of 28x28. Uneven light,
grey paper, coloured ink, page lines and unusual stroke widths are removed first. Accepts any image from 1x1 pixel.

Warnings, in the words of the API:
    blank           no ink was found; the result is an empty image
    low_contrast    ink and paper differ by less than a tenth of the range, or by little more than the paper's noise
    touches_border  the digit touches the edge of the image
    several_glyphs  more than one glyph of similar size, and their number (`several_glyphs: 2`): two digits, a word, clutter.
                    The detector knows single digits, so it judges the image as one thing; cut it into single digits first
    upscaled        the digit measures less than 12 pixels; no false-alarm rate is promised
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.detection.imaging.foreground import Foreground, extract_foreground, resized
from app.detection.imaging.morphology import ConnectedComponents, Mask, dilate, erode, label_components
from app.detection.imaging.order_statistics import median, percentiles
from app.detection.imaging.page_lines import find_page_lines
from app.detection.imaging.upload_features import Box, PreprocessStats, stroke_width, upload_features

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

WORKING_SIDE = 192  # longest side that is analysed: a digit on a sixth of it still has more pixels than the result
MIN_CONTRAST = 0.03  # smallest intensity of ink: 8 of 256 grey levels
CLOSED_GAP = 0.06  # of the digit's longest side: largest gap of a broken stroke that is closed
USUAL_WIDTHS = (1.75, 3.3)  # of strokes, in pixels of the 20-pixel box: the middle 80 % of MNIST's training set


class PreprocessedImage(NamedTuple):
    """One image as the model reads it, the steps that made it, and what they measured."""

    image: Pixels  # uint8 [28, 28], 0 = background, 255 = ink
    preprocess: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    features: Floats | None = None  # [K], see upload_features.py; None if the image was not preprocessed


class Glyph(NamedTuple):
    """The digit that was found in an image."""

    strokes: Floats  # [H, W] in [0, 1], the whole working image; 0 outside the digit
    box: Box  # of the strokes
    stats: PreprocessStats
    warnings: tuple[str, ...]
    lines_removed: bool


def preprocess_digit(pixels: Pixels, *, size: int = 28, steps: tuple[str, ...] = ()) -> PreprocessedImage:
    """Preprocess a grey uint8 [H, W] or RGB [H, W, 3] image of any size as the digits of MNIST were.

    `steps` names the steps before this one. Returns a `PreprocessedImage` with features. Never raises; no value is NaN.
    """
    work = _to_working_size(pixels)
    foreground = extract_foreground(work)
    glyph = _find_glyph(foreground)
    if glyph is None:
        empty = np.zeros((size, size), np.float32)
        features = upload_features(empty, PreprocessStats(contrast=foreground.strength))
        return PreprocessedImage(_to_uint8(empty), (*steps, "blank"), ("blank",), features)
    fitted, width_steps, stats = _fit(glyph, size)
    stats = stats._replace(bilevel=_is_bilevel(work))
    done = ("shrunk",) * (work.shape != pixels.shape) + ("inverted",) * foreground.inverted
    done += ("lines_removed",) * glyph.lines_removed + ("cropped",) + width_steps + ("centred",)
    return PreprocessedImage(_to_uint8(fitted), (*steps, *done), glyph.warnings, upload_features(fitted, stats))


def _to_uint8(values: Floats) -> Pixels:
    """Scale [H, W] in [0, 1] to uint8."""
    return np.rint(values * 255).astype(np.uint8)


def _to_working_size(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    scale = WORKING_SIDE / max(height, width)
    if scale >= 1:
        return pixels
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(target, Image.Resampling.BOX, reducing_gap=2.0))


def _is_bilevel(pixels: Pixels) -> bool:
    """Return whether the image holds two grey levels only."""
    grey = pixels if pixels.ndim == 2 else pixels[..., 1].copy()  # in one piece, which is faster to compare
    return bool(np.count_nonzero((grey == grey.min()) | (grey == grey.max())) >= 0.995 * grey.size)


def _find_glyph(foreground: Foreground) -> Glyph | None:
    """Remove the lines of the page and components at the edge, threshold the rest, select the components of the digit."""
    intensity = foreground.intensity
    floor = max(MIN_CONTRAST, min(4 * foreground.noise, 0.5 * foreground.strength))
    if foreground.strength < floor:
        return None
    ink = intensity > max(0.6 * _otsu(intensity), floor)
    lines = find_page_lines(ink, intensity)
    page = lines | _edge_components(label_components(ink & ~lines, intensity))
    lines_removed = bool(page.any())
    if lines_removed:
        kept = ink & ~page
        intensity = np.where((dilate(page.view(np.uint8), 1) > 0) & ~kept, np.float32(0), intensity)
    found = intensity > max(_otsu(intensity), floor)
    if not found.any():
        return None
    components = label_components(found, intensity)
    return _extract_strokes(foreground, intensity, components, lines_removed)


def _otsu(intensity: Floats) -> float:
    """Return Otsu's threshold (A threshold selection method from gray-level histograms, 1979)."""
    top = float(intensity.max())
    bins = (intensity.ravel() * np.float32(64 / (top or 1.0))).astype(np.intp)
    counts = np.bincount(bins, minlength=65).astype(np.float64)
    counts = np.append(counts[:63], counts[63:].sum())  # the largest values are in the last bin
    below = np.cumsum(counts)
    moment = np.cumsum(counts * np.arange(64))
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (moment[-1] * below / below[-1] - moment) ** 2 / (below * above)
    return (float(np.nanargmax(np.append(between[:-1], 0.0))) + 1) / 64 * top


def _edge_components(components: ConnectedComponents) -> Mask:
    """Find components close along an edge: remains of borders, parts of neighbours, shadows of the cell.

    In a tight crop, where the main component reaches two edges, they are parts of the digit.
    """
    height, width = components.labels.shape
    reach_y = np.minimum(components.bottom, height - components.top) / height
    reach_x = np.minimum(components.right, width - components.left) / width
    strips = components.touch_edge() & (np.minimum(reach_x, reach_y) <= 0.2)
    if strips.any() and not strips[main := components.main()]:
        edges = int(components.top[main] <= 0) + int(components.left[main] <= 0)
        edges += int(components.bottom[main] >= height) + int(components.right[main] >= width)
        strips &= edges < 2
    return components.mask_of(strips)


def _select_components(components: ConnectedComponents) -> Mask:
    """Select the main component and its neighbours, which are parts of broken strokes: [K]."""
    main, at_edge = components.main(), components.touch_edge()
    selected = np.equal(np.arange(len(at_edge)), main)
    allowed = ~at_edge | at_edge[main]
    for _ in range(3):
        left, top, right, bottom = _bounds(components, selected)
        gap = 0.12 * max(right - left, bottom - top)
        near = (components.left < right + gap) & (components.right > left - gap)
        near &= (components.top < bottom + gap) & (components.bottom > top - gap)
        selected |= near & allowed & (components.mass > 0.03 * components.mass[selected].sum())
    return selected


def _bounds(components: ConnectedComponents, selected: Mask) -> Box:
    left, top = components.left[selected].min(), components.top[selected].min()
    right, bottom = components.right[selected].max(), components.bottom[selected].max()
    return int(left), int(top), int(right), int(bottom)


def _extract_strokes(foreground: Foreground, intensity: Floats, components: ConnectedComponents, lines_removed: bool) -> Glyph:
    """Extract the strokes of the digit with their soft edges, and measure them. `intensity` holds no page lines."""
    selected = _select_components(components)
    digit = components.mask_of(selected)
    contrast = float(percentiles(intensity[digit], 85)[0])
    low = min(2 * foreground.noise, 0.3 * contrast)
    left, top, right, bottom = _bounds(components, selected)
    near = dilate(digit.view(np.uint8), max(1, round(0.03 * max(right - left, bottom - top))) + 1)
    strokes = np.clip((intensity - low) / max(contrast - low, 1e-6), 0, 1) * near
    if selected.sum() > 1:
        strokes = _close_gaps(strokes)
    box = _ink_box(strokes)
    left_out = float(components.mass[~selected & ~components.touch_edge()].sum())  # those at the edge belong to neighbours
    stats = PreprocessStats.measure(intensity, digit, near > 0, box, contrast)._replace(
        light=foreground.light / contrast,
        colour=foreground.colour / contrast,
        left_out=left_out / float(components.mass[selected].sum()),
        pieces=len(label_components(strokes > 0.5, strokes).mass) if selected.sum() > 1 else 1,
        extent=_longest_side(box),
    )
    warnings = _quality_warnings(components, selected, box, contrast < max(0.1, 6 * foreground.noise))
    return Glyph(strokes, box, stats, warnings, lines_removed)


def _close_gaps(strokes: Floats) -> Floats:
    """Join broken strokes [H, W]: a morphological closing over CLOSED_GAP of the digit's side."""
    left, top, right, bottom = _ink_box(strokes)
    radius = max(1, round(CLOSED_GAP * max(right - left, bottom - top) / 2))
    padded = np.pad(strokes, radius)
    return erode(dilate(padded, radius), radius)[radius:-radius, radius:-radius]


def _glyph_count(components: ConnectedComponents, selected: Mask) -> int:
    """Count the glyphs: components of more than 0.35 of the digit's mass, after the gaps of broken strokes are closed."""
    large = (selected | ~components.touch_edge()) & (components.mass > 0.35 * components.mass[selected].sum())
    if large.sum() < 2:
        return 1
    closed = _close_gaps(components.mask_of(large).astype(np.float32))
    return len(label_components(closed > 0.5, closed).mass)


def _ink_box(strokes: Floats) -> Box:
    """Return the bounding box of the strokes [H, W]."""
    rows, columns = np.flatnonzero((strokes > 0.1).any(axis=1)), np.flatnonzero((strokes > 0.1).any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _longest_side(box: Box) -> int:
    left, top, right, bottom = box
    return max(right - left, bottom - top)


def _quality_warnings(components: ConnectedComponents, selected: Mask, box: Box, faint: bool) -> tuple[str, ...]:
    """Return the warnings that apply, the number of glyphs first; the module's docstring lists all of them."""
    glyphs = _glyph_count(components, selected)
    found = {
        f"several_glyphs: {glyphs}": glyphs > 1,
        "low_contrast": faint,
        "touches_border": bool(components.touch_edge()[selected].any()),
        "upscaled": _longest_side(box) < 12,
    }
    return tuple(name for name, present in found.items() if present)


def _fit(glyph: Glyph, size: int) -> tuple[Floats, tuple[str, ...], PreprocessStats]:
    """Scale, normalise and centre the strokes: [size, size] in [0, 1]. Also returns the step names and the complete stats."""
    side = round(size * 20 / 28)
    left, top, right, bottom = glyph.box
    strokes = glyph.strokes[top:bottom, left:right]
    fitted = _to_box(strokes, side)
    width = stroke_width(fitted) * 20 / side
    stats = glyph.stats._replace(width=width)
    usual = float(np.clip(width, *USUAL_WIDTHS))
    if max(strokes.shape) <= side + 4 or usual == width:  # the width of strokes of so few pixels is not reliable
        return _centred(fitted, size), (), stats
    normalised = _normalise_stroke_width(strokes, (usual - width) * side / 20, side)
    return _centred(normalised, size), ("thickened" if usual > width else "thinned",), stats


def _to_box(strokes: Floats, side: int) -> Floats:
    """Resize so that the longest side has `side` pixels and the largest value is 1. The aspect is kept."""
    height, width = strokes.shape
    scale = side / max(height, width)
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    out = resized(strokes, *shape, Image.Resampling.BILINEAR if scale > 1 else Image.Resampling.BOX)
    largest = float(out.max())
    return np.clip(out / largest, 0, 1) if largest > 0 else out


def _normalise_stroke_width(strokes: Floats, change: float, side: int) -> Floats:
    """Widen the strokes by `change` pixels of the result, or narrow them if it is negative; scale to `side` pixels.

    Works at three times the scale of the result, and interpolates between two integer radii.
    """
    large = np.pad(_to_box(strokes, 3 * side), 3 * 3)
    ridge = large[(large > 0.2) & (large >= dilate(large, 1))]
    if change > 0 and ridge.size:  # a hairline reaches full intensity only where strokes cross
        large = np.clip(large / np.float32(median(ridge)), 0, 1)
    radius = min(abs(change) * 1.5, 9.0)
    fraction = np.float32(radius % 1)
    operation = dilate if change > 0 else erode
    inner = operation(large, int(radius))
    changed = (1 - fraction) * inner + fraction * operation(inner, 1)
    if not (changed > 0.1).any():
        return _to_box(strokes, side)
    left, top, right, bottom = _ink_box(changed)
    return _to_box(changed[top:bottom, left:right], side)


def _centred(strokes: Floats, size: int) -> Floats:
    """Place the centre of mass in the middle of [size, size], by whole pixels as in MNIST."""
    height, width = strokes.shape
    total = max(float(strokes.sum()), 1e-6)
    y = round(size / 2 - float(strokes.sum(axis=1) @ np.arange(height)) / total)
    x = round(size / 2 - float(strokes.sum(axis=0) @ np.arange(width)) / total)
    y, x = min(max(y, 0), size - height), min(max(x, 0), size - width)
    canvas = np.zeros((size, size), np.float32)
    canvas[y : y + height, x : x + width] = strokes
    return canvas
