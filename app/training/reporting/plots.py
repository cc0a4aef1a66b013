"""Figures of scores and images. The only file that imports matplotlib; it opens no window.

Images are uint8 [N, S, S]. Every function returns a figure; `save` writes it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from app.training.optional import needs_training_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Pixels = NDArray[np.uint8]
Floats = NDArray[np.floating]

NORMAL, ANOMALOUS, LIMIT = "#2f6fb2", "#d1495b", "#222222"
_DOTS_PER_INCH = 120


def save(figure: "Figure", path: Path) -> None:
    """Write a PNG without metadata, so that the same figure gives the same bytes."""
    figure.savefig(path, dpi=_DOTS_PER_INCH, metadata={"Software": None})


def losses(steps: Floats, fit: Sequence[float], test: Sequence[float]) -> "Figure":
    """The loss of every iteration [steps] and of each epoch on fit and test images; epoch 0 is the untrained network."""
    figure, axes = _blank("Training loss", "epoch", "mean squared error")
    epochs = len(fit) - 1
    axes.plot(np.linspace(0, epochs, len(steps)), steps, color=NORMAL, alpha=0.25, linewidth=0.6, label="each iteration")
    axes.plot(range(epochs + 1), fit, color=NORMAL, linewidth=1.8, label=f"fit images ({fit[-1]:.4f})")
    axes.plot(range(epochs + 1), test, color=ANOMALOUS, linewidth=1.8, label=f"test images ({test[-1]:.4f})")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:.2f}")
    axes.yaxis.set_minor_formatter("{x:.2f}")
    axes.legend(frameon=False)
    return figure


def reconstructions(originals: Pixels, reconstructed: Pixels, title: str) -> "Figure":
    """Originals [N, S, S] above their reconstructions, sixteen pairs a row."""
    columns = min(16, len(originals))
    rows = []
    for start in range(0, len(originals), columns):
        rows += [_padded(images[start : start + columns], columns) for images in (originals, reconstructed)]
    return _picture(_mosaic(np.concatenate(rows), columns), title)


def latent_plane(embeddings: Floats, labels: NDArray[np.integer] | None) -> "Figure":
    """Embeddings [N, D >= 2] as points, coloured by class where labels are known; D > 2: their first two principal axes."""
    if embeddings.shape[1] == 2:
        title, axis = "Test images in the latent plane", "coordinate"
    else:
        title, axis = f"Test images in the latent space of {embeddings.shape[1]} dimensions", "principal axis"
        embeddings = _principal_axes(embeddings)
    figure, axes = _blank(title, f"first {axis}", f"second {axis}", size=(8, 7))
    if labels is None:
        axes.scatter(embeddings[:, 0], embeddings[:, 1], s=3, color=NORMAL, linewidths=0)
        return figure
    points = axes.scatter(embeddings[:, 0], embeddings[:, 1], s=4, c=labels, cmap="tab10", linewidths=0)
    classes = np.unique(labels)
    if len(classes) <= 10:
        points.set_clim(classes.min() - 0.5, max(classes.max(), classes.min() + 9) + 0.5)
        figure.colorbar(points, ax=axes, ticks=list(classes), label="class")
    return figure


def _principal_axes(embeddings: Floats) -> Floats:
    """Embeddings [N, D] -> [N, 2]: their coordinates along the two directions of largest variance, around their mean."""
    centred = embeddings - embeddings.mean(0)
    _, directions = np.linalg.eigh(centred.T @ centred)  # ascending variance
    axes: Floats = centred @ directions[:, :-3:-1]
    return axes


def errors(normal: Floats, threshold: float, alpha: float, anomalies: Mapping[str, Floats] | None = None) -> "Figure":
    """Histogram of the scores of normal images [N] and of sets of anomalies, with the threshold."""
    figure, axes = _blank("Scores and the threshold", "score (higher = more anomalous)", "share of images")
    everything = [normal, *(anomalies or {}).values()]
    low, high = min(float(s.min()) for s in everything), max(float(np.quantile(s, 0.995)) for s in everything)
    bins = np.linspace(low, max(high, threshold * 1.2), 81)
    _histogram(axes, normal, bins, NORMAL, "normal test images")
    for name, scores in (anomalies or {}).items():
        _histogram(axes, scores, bins, ANOMALOUS if len(everything) == 2 else None, name, filled=len(everything) == 2)
    axes.axvline(threshold, color=LIMIT, linestyle="--", label=f"threshold {threshold:.4g} (alpha {alpha:g})")
    axes.legend(frameon=False, fontsize=8)
    return figure


def roc_curves(curves: Mapping[str, tuple[Floats, Floats, float]]) -> "Figure":
    """ROC curves. `curves`: name -> (false-alarm rates, shares caught, AUROC)."""
    figure, axes = _blank("Anomalies against normal test images", "false-alarm rate", "share caught", size=(7, 6.5))
    for name, (false_rate, true_rate, auroc) in curves.items():
        axes.plot(false_rate, true_rate, linewidth=1.6, label=f"{name} ({auroc:.3f})")
    axes.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1)
    axes.legend(title="set (AUROC)", frameon=False, fontsize=8, loc="lower right")
    return figure


def p_value_uniformity(p_values: Floats) -> "Figure":
    """Cumulative distribution of p-values [N]; calibrated ones lie on the diagonal."""
    figure, axes = _blank("p-values of normal test images", "p-value", "share of images at or below it", size=(6.5, 6))
    ordered = np.sort(p_values)
    axes.plot(ordered, np.arange(1, len(ordered) + 1) / len(ordered), color=NORMAL, linewidth=1.8, label="measured")
    axes.plot([0, 1], [0, 1], color=LIMIT, linestyle=":", linewidth=1, label="uniform")
    axes.legend(frameon=False)
    return figure


def extremes(images: Pixels, scores: Floats, title: str, count: int = 32) -> "Figure":
    """The `count` images with the lowest scores above the `count` with the highest, ordered by score."""
    figure = _figure((9, 3.4))
    order = np.argsort(scores, kind="stable")
    halves = (("most normal", order[:count]), ("most anomalous", order[::-1][:count]))
    for axes, (words, index) in zip(figure.subplots(2, 1), halves, strict=True):
        columns = min(16, len(index))
        axes.imshow(_mosaic(_padded(images[index], columns), columns), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(f"{words}: scores {scores[index[0]]:.4g} to {scores[index[-1]]:.4g}", fontsize=10)
        axes.axis("off")
    figure.suptitle(title)
    return figure


def _figure(size: tuple[float, float]) -> "Figure":
    with needs_training_extra():
        from matplotlib.figure import Figure
    return Figure(figsize=size, layout="constrained")


def _blank(title: str, x_label: str, y_label: str, size: tuple[float, float] = (8, 5)) -> "tuple[Figure, Axes]":
    figure = _figure(size)
    axes = figure.subplots()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.5)
    return figure, axes


def _picture(mosaic: Pixels, title: str) -> "Figure":
    height, width = mosaic.shape
    figure = _figure((9, 9 * height / width + 0.5))
    axes = figure.subplots()
    axes.imshow(mosaic, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_title(title)
    axes.axis("off")
    return figure


def _histogram(axes: "Axes", scores: Floats, bins: Floats, color: str | None, label: str, *, filled: bool = True) -> None:
    """Draw a histogram of shares. Scores outside the bins count in the outermost ones."""
    weights = np.full(len(scores), 1 / len(scores))
    inside = np.clip(scores, bins[0], bins[-1])
    style: dict[str, Any] = {"alpha": 0.55} if filled else {"histtype": "step", "linewidth": 1.4}
    axes.hist(inside, bins=list(bins), weights=weights, color=color, label=label, **style)


def _padded(images: Pixels, columns: int) -> Pixels:
    """Add black images so that the last row of `columns` images is full."""
    missing = -len(images) % columns
    return np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.uint8)])


def _mosaic(images: Pixels, columns: int) -> Pixels:
    """Tile images [rows * columns, S, S] with grey lines between them: [rows * (S + 1), columns * (S + 1)]."""
    framed = np.pad(images, ((0, 0), (0, 1), (0, 1)), constant_values=90)
    side = framed.shape[1]
    rows = framed.reshape(-1, columns, side, side).transpose(0, 2, 1, 3)  # [rows, side, columns, side]
    return rows.reshape(-1, columns * side)
