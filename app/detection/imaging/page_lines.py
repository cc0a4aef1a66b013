"""Lines of the page: ruled and squared paper, frames of form fields, cells of tables. They are not part of the digit.

A line crosses the whole image. Where a stroke crosses the line, the stroke is kept: as in staff-line removal (Dalitz et al., A
comparative study of staff removal algorithms, IEEE TPAMI 2008), only pixels whose run across the line is as short as the line
is thick are removed. In a tight crop a stroke of the digit may itself cross the image. So a line must also be a large
part of its connected component, unless the digit keeps a distance from the border, or lines run in both
directions.
"""

import numpy as np
from numpy.typing import NDArray

from app.detection.imaging.foreground import line_sides
from app.detection.imaging.morphology import Floats, Mask, dilate, label_components, sliding_extreme

MIN_COVERAGE = 0.85  # of a row, by ink
MAX_THICKNESS = 0.2  # of the image's side
THIN = 0.05  # of the image's side: thicker lines may be strokes of a tightly cropped digit
THIN_FRAME = 0.08  # the same for lines in both directions
HAIRLINE = 0.03  # of the side: thinner lines are not strokes
MIN_LENGTH = 0.7  # of the side, by a thicker line without the strokes that cross it
MIN_SHARE, MIN_SHARE_THICK = 0.4, 0.8  # of a component, by thin lines and by thick ones
DARKER = 1.25  # times the strength of the line: stronger ink belongs to a stroke
FREE = 0.05  # of the side: distance from the border of a digit that is not tightly cropped
MIN_REMAINS = 0.15  # of the ink


def find_page_lines(mask: Mask, intensity: Floats) -> Mask:
    """Find straight lines across the whole image in the ink `mask` [H, W], and frames that keep a distance from the border."""
    down, across = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = slice(down[0], down[-1] + 1), slice(across[0], across[-1] + 1)
    if line_sides(mask[box]) < 3:
        return _find_lines(mask, intensity)
    lines = np.zeros_like(mask)
    lines[box] = _find_lines(mask[box], intensity[box])
    return lines


def _find_lines(mask: Mask, intensity: Floats) -> Mask:
    rows, row_share = _lines_across(mask, intensity)
    columns, column_share = _lines_across(mask.T, intensity.T)
    lines: Mask = rows | columns.T
    if not lines.any():
        return lines
    if lines.sum() > (1 - MIN_REMAINS) * mask.sum():
        return np.zeros_like(mask)
    thickness = max(row_share, column_share)
    thin = thickness <= THIN
    free, joined = _free_sides(mask & ~lines, lines, intensity)
    if (free == 4 and (thin or not joined)) or (free >= 2 and thickness <= THIN_FRAME and rows.any() and columns.any()):
        return lines
    components = label_components(mask, np.ones_like(intensity))
    share = np.bincount(components.labels[lines], minlength=len(components.mass)) / components.mass
    return lines & components.mask_of(share >= (MIN_SHARE if thin else MIN_SHARE_THICK))


def _free_sides(ink: Mask, lines: Mask, intensity: Floats) -> tuple[int, bool]:
    """Count the sides from which the main component of the ink keeps a distance; a tightly cropped digit comes close to most.

    Also return whether the component touches a line.
    """
    components = label_components(ink, intensity)
    main = components.main()
    height, width = ink.shape
    down, across = FREE * height, FREE * width
    free = int(components.top[main] > down) + int(components.bottom[main] < height - down)
    free += int(components.left[main] > across) + int(components.right[main] < width - across)
    digit = (components.labels == main).astype(np.float32)
    return free, bool(((dilate(digit, 1) > 0) & lines).any())


def _lines_across(mask: Mask, intensity: Floats) -> tuple[Mask, float]:
    """Find the pixels of horizontal lines; a slight slant is allowed. Also return the thickness over the height."""
    height, width = mask.shape
    nothing = np.zeros_like(mask), 0.0
    if height < 16 or width < 16:
        return nothing
    reach = max(1, round(0.02 * height))
    rows = sliding_extreme(mask, np.logical_or, reach).mean(axis=1) >= MIN_COVERAGE
    rows &= _run_lengths(rows) <= MAX_THICKNESS * height
    if not rows.any():
        return nothing
    runs = _run_lengths(np.pad(mask, ((0, 1), (0, 0))).T.ravel()).reshape(width, height + 1).T[:-1]
    lines, thickest = np.zeros_like(mask), 0.0
    for start, end in np.flatnonzero(np.diff(np.pad(rows, 1).astype(np.int8))).reshape(-1, 2):
        band = slice(max(0, start - reach), end + reach)
        line, thickness = _line_pixels(runs[band], intensity[band])
        if thickness <= HAIRLINE * height or line.any(axis=0).mean() >= MIN_LENGTH:
            lines[band], thickest = line, max(thickest, thickness)
    return lines, thickest / height


def _line_pixels(runs: NDArray[np.intp], intensity: Floats) -> tuple[Mask, float]:
    """Find the pixels of one line in a band of rows, from the run lengths across it [H, W]. Also return its thickness."""
    inked = runs > 0
    longest = len(runs) + 1
    shortest = np.where(inked, np.minimum(runs, longest), longest).min(axis=0)  # strokes that cross the line have longer runs
    thickness = float(np.median(shortest[shortest < longest])) if (shortest < longest).any() else float(longest)
    line: Mask = inked & (runs <= 1.5 * thickness + 1)
    if line.any():
        line &= intensity <= DARKER * float(np.percentile(intensity[line], 75))
    return line, thickness


def _run_lengths(values: Mask) -> NDArray[np.intp]:
    """Return for each element the length of the run of True that it lies in, else 0."""
    steps = np.diff(np.concatenate([[False], values, [False]]).astype(np.int8))
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    lengths = np.zeros(len(values), np.intp)
    lengths[values] = np.repeat(ends - starts, ends - starts)
    return lengths
