"""Figures of scores and images. The only file that imports matplotlib; it opens no window.

Images are uint8 [N, S, S]. Every function returns a figure; `save` writes it. The colours are those of the demo page.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from app.training.reporting.metrics import Share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Pixels = NDArray[np.uint8]
Floats = NDArray[np.floating]

INK, SOFT, LINE = "#1d1f27", "#5d606b", "#dedbd3"
NORMAL, ANOMALOUS = "#0063a8", "#b84300"
CLASSES = ("#332288", "#0f7fb8", "#2f8f7f", "#117733", "#7d7d1a", "#9a7d0a", "#b8475a", "#882255", "#aa4499", "#5b5b5b")
_DOTS_PER_INCH = 120
_TICKS = (0.02, 0.25, 0.5, 0.75, 0.98)  # ranks at which the latent plane's axes are labelled
_LEAST_RATE = 1e-4  # left end of the ROC curves' logarithmic axis


def save(figure: "Figure", path: Path) -> None:
    """Write a PNG without metadata, so that the same figure gives the same bytes."""
    figure.savefig(path, dpi=_DOTS_PER_INCH, metadata={"Software": None})


def losses(steps: Floats, fit: Sequence[float], test: Sequence[float]) -> "Figure":
    """The loss of every iteration [steps] and of each epoch on fit and test images; epoch 0 is the untrained network."""
    figure, axes = _blank("Training loss", "epoch", "mean squared error")
    epochs = len(fit) - 1
    axes.plot(np.linspace(0, epochs, len(steps)), steps, color=NORMAL, alpha=0.2, linewidth=0.6, label="each iteration")
    axes.plot(range(epochs + 1), fit, color=NORMAL, linewidth=1.8, label=f"fit images ({fit[-1]:.4f})")
    axes.plot(range(epochs + 1), test, color=ANOMALOUS, linewidth=1.8, label=f"test images ({test[-1]:.4f})")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:.2f}")
    axes.yaxis.set_minor_formatter("{x:.2f}")
    axes.legend(loc="upper right", frameon=False)
    return figure


def reconstructions(originals: Pixels, reconstructed: Pixels, title: str) -> "Figure":
    """Originals [N, S, S] above their reconstructions, sixteen pairs a row."""
    columns = min(16, len(originals))
    rows = []
    for start in range(0, len(originals), columns):
        rows += [_padded(images[start : start + columns], columns) for images in (originals, reconstructed)]
    return _picture(_mosaic(np.concatenate(rows), columns), title)


def epochs(originals: Pixels, by_epoch: Mapping[int, Pixels]) -> "Figure":
    """A row for each of the originals [N, S, S]: the original, then its reconstruction [N, S, S] after each of the epochs."""
    columns = [originals, *by_epoch.values()]
    mosaic = _mosaic(np.stack(columns, axis=1).reshape(-1, *originals.shape[1:]), len(columns))
    figure = _picture(mosaic, "Test images, and their reconstructions over the epochs")
    (axes,) = figure.axes
    step = mosaic.shape[1] / len(columns)
    axes.axis("on")
    axes.spines[:].set_visible(False)
    axes.set_xticks([(column + 0.5) * step for column in range(len(columns))], ["image", *map(str, by_epoch)])
    axes.set_yticks([])
    axes.tick_params(length=0, colors=SOFT)
    return figure


def latent_plane(embeddings: Floats, labels: NDArray[np.integer] | None) -> "Figure":
    """Embeddings [N, D >= 2] as points, coloured by class where labels are known; D > 2: their first two principal axes.

    The axes are stretched by rank, so that every class takes its share of the area. A class's label stands at its median.
    """
    if embeddings.shape[1] == 2:
        title, axis = "Test images in the latent plane", "coordinate"
    else:
        title, axis = f"Test images in the latent space of {embeddings.shape[1]} dimensions", "principal axis"
        embeddings = _principal_axes(embeddings)
    figure, axes = _blank(title, f"first {axis}, stretched by rank", f"second {axis}, stretched by rank", size=(8, 7.6))
    colours = NORMAL if labels is None else [CLASSES[label % len(CLASSES)] for label in labels]
    axes.scatter(embeddings[:, 0], embeddings[:, 1], s=4, color=colours, linewidths=0)
    _stretch_by_rank(axes, embeddings)
    for label in np.unique(labels)[:20] if labels is not None else ():
        x, y = np.median(embeddings[labels == label], axis=0)
        text = axes.text(
            x, y, str(label), color=CLASSES[label % len(CLASSES)], size=22, weight="bold", ha="center", va="center"
        )
        text.set_path_effects(_halo())
    return figure


def errors(normal: Floats, threshold: float, alpha: float, anomalies: Mapping[str, Floats] | None = None) -> "Figure":
    """Histogram of the scores of normal images [N], on a logarithmic axis, with the threshold; sets of anomalies over it."""
    figure, axes = _blank("Scores and the threshold", "score (higher = more anomalous)", "share of images")
    everything = [normal, *(anomalies or {}).values()]
    low, high = min(float(s.min()) for s in everything), max(float(np.quantile(s, 0.995)) for s in everything)
    bins = np.linspace(low, max(high, float(normal.max()), threshold * 1.2), 81)
    _histogram(axes, normal, bins, "normal test images", color=NORMAL, alpha=0.45)
    for index, (name, scores) in enumerate((anomalies or {}).items()):
        colour = ANOMALOUS if len(everything) == 2 else CLASSES[-1 - index % len(CLASSES)]
        _histogram(axes, scores, bins, name, color=colour, histtype="step", linewidth=1.6)
    axes.axvline(threshold, color=INK, linestyle="--", label=f"threshold {threshold:.4g} (alpha {alpha:g})")
    axes.set_yscale("log")
    axes.legend(loc="upper right", frameon=False, fontsize=8)
    return figure


def roc_curves(curves: Mapping[str, tuple[Floats, Floats, float]], alpha: float | None = None) -> "Figure":
    """ROC curves over a logarithmic false-alarm axis, with `alpha` marked. `curves`: name -> (false-alarm rates, shares caught,
    AUROC)."""
    figure, axes = _blank("Anomalies against normal test images", "false-alarm rate", "share caught", size=(7.5, 6))
    for index, (name, (false_rate, true_rate, auroc)) in enumerate(curves.items()):
        colour = CLASSES[index % len(CLASSES)]
        drawn = np.maximum(false_rate, _LEAST_RATE)
        axes.plot(drawn, true_rate, linewidth=1.8, color=colour, label=f"{name} ({auroc:.3f})", drawstyle="steps-post")
    if alpha is not None:
        axes.axvline(alpha, color=INK, linestyle="--", linewidth=1, label=f"alpha {alpha:g}")
    chance = np.geomspace(_LEAST_RATE, 1, 200)
    axes.plot(chance, chance, color=SOFT, linestyle=":", linewidth=1)
    axes.set(xscale="log", xlim=(_LEAST_RATE, 1), ylim=(0, 1.01))
    axes.legend(loc="lower right", title="set (AUROC)", frameon=False, fontsize=8)
    return figure


def shares(title: str, label: str, by_name: Mapping[str, Share], limit: float | None = None) -> "Figure":
    """A bar for each share with its interval, and a line at `limit`, a share too."""
    figure, axes = _blank(title, f"{label}, %", "", size=(8, max(3.0, 0.42 * len(by_name) + 1.2)))
    names, values = (
        list(by_name),
        np.array([[100 * share.value, 100 * share.low, 100 * share.high] for share in by_name.values()]),
    )
    middle, low, high = values.T
    colour = NORMAL if limit is not None else ANOMALOUS
    axes.barh(names, middle, color=colour, alpha=0.45, height=0.62)
    axes.errorbar(middle, names, xerr=[middle - low, high - middle], fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)
    if limit is not None:
        axes.axvline(100 * limit, color=ANOMALOUS, linestyle="--", label=f"promised at most {100 * limit:g} %, on average")
        axes.legend(loc="lower right", frameon=False, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.grid(axis="y", visible=False)
    return figure


def p_value_uniformity(p_values: Floats) -> "Figure":
    """Cumulative distribution of p-values [N] on logarithmic axes; calibrated ones lie on the diagonal."""
    figure, axes = _blank("p-values of normal test images", "p-value", "share of images at or below it", size=(6.5, 6))
    ordered = np.sort(p_values)
    axes.plot(ordered, np.arange(1, len(ordered) + 1) / len(ordered), color=NORMAL, linewidth=1.8, label="measured")
    ends = [max(float(ordered[0]), 1e-6), 1.0]
    axes.plot(ends, ends, color=INK, linestyle=":", linewidth=1, label="uniform")
    axes.set(xscale="log", yscale="log")
    axes.legend(loc="upper left", frameon=False)
    return figure


def extremes(images: Pixels, scores: Floats, title: str, count: int = 32) -> "Figure":
    """The `count` images with the lowest scores above the `count` with the highest, ordered by score."""
    figure = _figure((9, 3.4))
    order = np.argsort(scores, kind="stable")
    halves = (("most normal", order[:count]), ("most anomalous", order[::-1][:count]))
    for axes, (words, index) in zip(figure.subplots(2, 1), halves, strict=True):
        columns = min(16, len(index))
        axes.imshow(_mosaic(_padded(images[index], columns), columns), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(f"{words}: scores {scores[index[0]]:.4g} to {scores[index[-1]]:.4g}", fontsize=10, color=SOFT)
        axes.axis("off")
    figure.suptitle(title, x=0.01, ha="left", weight="bold", color=INK)
    return figure


def _principal_axes(embeddings: Floats) -> Floats:
    """Embeddings [N, D] -> [N, 2]: their coordinates along the two directions of largest variance, around their mean."""
    centred = embeddings - embeddings.mean(0)
    _, directions = np.linalg.eigh(centred.T @ centred)  # ascending variance
    axes: Floats = centred @ directions[:, :-3:-1]
    return axes


def _stretch_by_rank(axes: "Axes", points: Floats) -> None:
    """Scale both axes so that the points [N, 2] are spread evenly over them; ticks show the true coordinates."""
    for axis, set_scale, set_limits in ((0, axes.set_xscale, axes.set_xlim), (1, axes.set_yscale, axes.set_ylim)):
        values = np.unique(points[:, axis]).astype(float)
        ranks = np.linspace(0.02, 0.98, len(values))
        margin = max(float(np.ptp(values)), 1.0)  # outside of the points, so that they keep clear of the frame
        values, ranks = np.array([values[0] - margin, *values, values[-1] + margin]), np.array([0, *ranks, 1])
        set_scale("function", functions=(_interpolation(values, ranks), _interpolation(ranks, values)))
        set_limits(values[0], values[-1])
        ticks = np.unique(np.round(np.quantile(points[:, axis], _TICKS), 1))
        (axes.set_xticks, axes.set_yticks)[axis](ticks, [f"{tick:g}" for tick in ticks])


def _interpolation(source: Floats, target: Floats) -> Any:  # noqa: ANN401
    return lambda values: np.interp(values, source, target)


def _halo() -> list[Any]:
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=4, foreground="white")]


def _figure(size: tuple[float, float]) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _blank(title: str, x_label: str, y_label: str, size: tuple[float, float] = (8, 5)) -> "tuple[Figure, Axes]":
    figure = _figure(size)
    axes = figure.subplots()
    axes.set_title(title, loc="left", weight="bold", color=INK, pad=12)
    axes.set_xlabel(x_label, color=SOFT)
    axes.set_ylabel(y_label, color=SOFT)
    axes.tick_params(which="both", colors=SOFT, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(LINE)
    axes.grid(color=LINE, alpha=0.6, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _picture(mosaic: Pixels, title: str) -> "Figure":
    height, width = mosaic.shape
    figure = _figure((9, 9 * height / width + 0.5))
    axes = figure.subplots()
    axes.imshow(mosaic, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_title(title, loc="left", weight="bold", color=INK, fontsize=11)
    axes.axis("off")
    return figure


def _histogram(axes: "Axes", scores: Floats, bins: Floats, label: str, **style: Any) -> None:  # noqa: ANN401
    """Draw a histogram of shares. Scores outside the bins count in the outermost ones."""
    weights = np.full(len(scores), 1 / len(scores))
    axes.hist(np.clip(scores, bins[0], bins[-1]), bins=list(bins), weights=weights, label=label, **style)


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


def sheet(images: Pixels, columns: int) -> Pixels:
    """Tile images [N, S, S] without lines, `columns` a row: [rows * S, columns * S], the last row filled with black."""
    images, side = _padded(images, columns), images.shape[1]
    rows = images.reshape(-1, columns, side, side).transpose(0, 2, 1, 3)
    return rows.reshape(-1, columns * side)
