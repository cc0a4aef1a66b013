"""Lines of the page: ruled and squared paper, frames of form fields, cells of tables. They are not part of the digit.

A line crosses the whole image. Where a stroke crosses the line, the stroke is kept: as in staff-line removal (Dalitz et al., A
comparative study of staff removal algorithms, IEEE TPAMI 2008), only pixels whose run across the line is as short as the line
is thick are removed. In a tight crop a stroke of the digit may itself cross the image. So a line must also be a large
part of its connected component, unless the digit keeps a distance from the border.
"""

import numpy as np
from numpy.typing import NDArray

from app.detection.imaging.foreground import line_sides
from app.detection.imaging.morphology import Floats, Mask, label_components, sliding_extreme

MIN_COVERAGE = 0.85  # of a row, by ink
MAX_THICKNESS = 0.2  # of the image's side
THIN = 0.05  # of the image's side: thicker lines may be strokes of a tightly cropped digit
MIN_SHARE, MIN_SHARE_THICK = 0.4, 0.8  # of a component, by thin lines and by thick ones
DARKER = 1.25  # times the strength of the line: stronger ink belongs to a stroke
FREE, FREE_THICK = (
    0.05,
    0.1,
)  # of the side: distance from the border of a digit that stands free of thin or thick lines
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
    thin = max(row_share, column_share) <= THIN
    if _stands_free(mask & ~lines, intensity, FREE if thin else FREE_THICK):
        return lines
    components = label_components(mask, np.ones_like(intensity))
    share = np.bincount(components.labels[lines], minlength=len(components.mass)) / components.mass
    return lines & components.mask_of(share >= (MIN_SHARE if thin else MIN_SHARE_THICK))


def _stands_free(ink: Mask, intensity: Floats, distance: float) -> bool:
    """Return whether the heaviest component keeps a distance from the border, unlike a tightly cropped digit."""
    components = label_components(ink, intensity)
    main = int(np.argmax(components.mass))
    height, width = ink.shape
    down, across = distance * height, distance * width
    inside = components.top[main] > down and components.bottom[main] < height - down
    return bool(inside and components.left[main] > across and components.right[main] < width - across)


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
    band = mask & sliding_extreme(rows, np.logical_or, reach)[:, None]
    runs = _run_lengths(np.pad(mask, ((0, 1), (0, 0))).T.ravel()).reshape(width, height + 1).T[:-1]
    shortest = np.where(band, runs, height).min(axis=0)  # strokes that cross the line have longer runs
    thickness = float(np.median(shortest[shortest < height]))
    across: Mask = band & (runs <= 1.5 * thickness + 1)
    across &= intensity <= DARKER * float(np.percentile(intensity[across], 75)) if across.any() else False
    return across, thickness / height


def _run_lengths(values: Mask) -> NDArray[np.intp]:
    """Return for each element the length of the run of True that it lies in, else 0."""
    steps = np.diff(np.concatenate([[False], values, [False]]).astype(np.int8))
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    lengths = np.zeros(len(values), np.intp)
    lengths[values] = np.repeat(ends - starts, ends - starts)
    return lengths
