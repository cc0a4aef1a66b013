"""Connected pieces, growing and shrinking of small pictures, in numpy alone. Knows neither digits nor paper."""

from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.intp]
Mask = NDArray[np.bool_]
T = TypeVar("T", bound=np.generic)


class Pieces(NamedTuple):
    """The connected pieces of a mask, numbered from 0 in reading order."""

    labels: NDArray[np.int32]  # [H, W], -1 outside the mask
    mass: NDArray[np.float64]  # [K], the weights' sum over each piece
    top: Ints  # [K], first row
    bottom: Ints  # [K], last row + 1
    left: Ints  # [K], first column
    right: Ints  # [K], last column + 1

    def select(self, chosen: Mask) -> Mask:
        """Pieces [K] -> pixels [H, W]."""
        return np.append(chosen, False)[self.labels]


def find_pieces(mask: Mask, weights: Floats) -> Pieces:
    """Label the 8-connected pieces of mask [H, W]; weights [H, W] say what a pixel weighs.

    Works on runs (stretches of a row), a few hundred for a digit, joined by label propagation with pointer jumping.
    """
    rows, starts, ends = _runs(mask)
    labels = _join(*_touching(rows, starts, ends, mask.shape[1] + 2), len(rows))
    count = int(labels.max(initial=-1)) + 1
    image = np.full(mask.shape, -1, np.int32)
    image[mask] = np.repeat(labels, ends - starts)
    mass = np.bincount(image[mask], weights=weights[mask], minlength=count).astype(np.float64)
    top, left = np.full(count, mask.shape[0]), np.full(count, mask.shape[1])
    bottom, right = np.zeros(count, np.intp), np.zeros(count, np.intp)
    np.minimum.at(top, labels, rows)
    np.minimum.at(left, labels, starts)
    np.maximum.at(bottom, labels, rows + 1)
    np.maximum.at(right, labels, ends)
    return Pieces(image, mass, top, bottom, left, right)


def _runs(mask: Mask) -> tuple[Ints, Ints, Ints]:
    """Row, first column and end column of every run, in reading order."""
    height, width = mask.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask
    steps = np.diff(padded, axis=1).ravel()
    rows, starts = np.divmod(np.flatnonzero(steps == 1), width + 1)
    return rows, starts, np.flatnonzero(steps == -1) % (width + 1)


def _touching(rows: Ints, starts: Ints, ends: Ints, stride: int) -> tuple[Ints, Ints]:
    """Pairs of runs in neighbouring rows that touch, corners included."""
    below = (rows + 1) * stride
    first = np.searchsorted(rows * stride + ends, below + starts, side="left")
    last = np.searchsorted(rows * stride + starts, below + ends, side="right")
    counts = np.maximum(last - first, 0)
    upper = np.repeat(np.arange(len(rows)), counts)
    offsets = np.arange(len(upper)) - np.repeat(np.cumsum(counts) - counts, counts)
    return upper, first[upper] + offsets


def _join(upper: Ints, lower: Ints, count: int) -> Ints:
    """Smallest run of each piece, renumbered 0..K-1, for every run."""
    parent = np.arange(count)
    while True:
        lowest = np.minimum(parent[upper], parent[lower])
        before = parent.copy()
        np.minimum.at(parent, before[upper], lowest)
        np.minimum.at(parent, before[lower], lowest)
        parent = parent[parent]
        if (parent == before).all():
            return np.unique(parent, return_inverse=True)[1].reshape(-1)


def grow(values: Floats, radius: int) -> Floats:
    """Largest value within an octagon of that radius, [H, W] -> [H, W]; edges are continued."""
    for step in range(radius):
        values = _neighbours(values, np.maximum, corners=step % 2 == 1)
    return values


def shrink(values: Floats, radius: int) -> Floats:
    """Smallest value within an octagon of that radius, [H, W] -> [H, W]; edges are continued."""
    for step in range(radius):
        values = _neighbours(values, np.minimum, corners=step % 2 == 1)
    return values


def _neighbours(values: Floats, pick: np.ufunc, *, corners: bool) -> Floats:
    down = values.copy()
    pick(down[1:], values[:-1], out=down[1:])
    pick(down[:-1], values[1:], out=down[:-1])
    across = down if corners else values
    out = down.copy()
    pick(out[:, 1:], across[:, :-1], out=out[:, 1:])
    pick(out[:, :-1], across[:, 1:], out=out[:, :-1])
    return out


def window_extreme(values: Floats, pick: np.ufunc, reach: int) -> Floats:
    """np.minimum or np.maximum over the square of 2 * reach + 1, [H, W] -> [H, W]; edges are continued."""
    return sweep(sweep(values, pick, reach).T, pick, reach).T


def sweep(values: NDArray[T], pick: np.ufunc, reach: int) -> NDArray[T]:
    """The same over columns of 2 * reach + 1 rows. By doubling shifts, so the cost grows with log2(reach)."""
    out = continued(values, reach, reach)
    width, wanted = 1, 2 * reach + 1
    while width < wanted:
        step = min(width, wanted - width)
        out = pick(out[:-step], out[step:])
        width += step
    return out


def continued(values: NDArray[T], before: int, after: int) -> NDArray[T]:
    """First and last row repeated, [H, W] -> [before + H + after, W]; a fifth of the time of np.pad on small pictures."""
    height = len(values)
    out = np.empty((before + height + after, *values.shape[1:]), values.dtype)
    out[:before], out[before : before + height], out[before + height :] = values[0], values, values[-1]
    return out
