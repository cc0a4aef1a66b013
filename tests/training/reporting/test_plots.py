"""Every figure can be drawn and saved, also from the smallest input, without pyplot."""

import numpy as np
import pytest
from PIL import Image
from strokes import stroke_images

from app.training.reporting import plots
from app.training.reporting.metrics import Share

IMAGES = stroke_images(40, seed=4)
SCORES = np.random.RandomState(0).rand(40).astype(np.float32)
PLANE = np.random.RandomState(1).randn(40, 2).astype(np.float32)

FIGURES = {
    "losses": lambda: plots.losses(SCORES, [0.9, 0.5, 0.4], [0.9, 0.5, 0.45]),
    "losses of one epoch": lambda: plots.losses(SCORES[:1], [0.9, 0.5], [0.9, 0.5]),
    "reconstructions": lambda: plots.reconstructions(IMAGES, IMAGES, "after 10 epochs"),
    "one reconstruction": lambda: plots.reconstructions(IMAGES[:1], IMAGES[:1], "after 0 epochs"),
    "latent plane": lambda: plots.latent_plane(PLANE, np.arange(40) % 10),
    "latent plane, one class": lambda: plots.latent_plane(PLANE, np.zeros(40, np.int64)),
    "latent plane, many classes": lambda: plots.latent_plane(PLANE, np.arange(40)),
    "latent plane without labels": lambda: plots.latent_plane(PLANE, None),
    "latent space of five dimensions": lambda: plots.latent_plane(np.repeat(PLANE, 3, 1)[:, :5], np.arange(40) % 10),
    "errors": lambda: plots.errors(SCORES, 0.9, 0.01),
    "errors, all the same": lambda: plots.errors(np.ones(5, np.float32), 1.0, 0.01),
    "errors with anomalies": lambda: plots.errors(SCORES, 0.9, 0.01, {"noise": SCORES + 1}),
    "errors with many sets": lambda: plots.errors(SCORES, 0.9, 0.01, {str(index): SCORES + index for index in range(6)}),
    "epochs": lambda: plots.epochs(IMAGES[:5], {0: IMAGES[5:10], 10: IMAGES[10:15]}),
    "shares": lambda: plots.shares("Caught", "caught", {"noise": Share(0.5, 0.4, 0.6), "letters": Share(0, 0, 0.1)}),
    "shares with a limit": lambda: plots.shares("False alarms", "flagged", {"7": Share(0.01, 0, 0.02)}, 0.01),
    "roc with alpha": lambda: plots.roc_curves({"noise": (np.array([0, 0.5, 1]), np.array([0, 0.9, 1]), 0.8)}, 0.01),
    "roc": lambda: plots.roc_curves({"noise": (np.array([0, 0.5, 1]), np.array([0, 0.9, 1]), 0.8)}),
    "p-values": lambda: plots.p_value_uniformity(SCORES),
    "extremes": lambda: plots.extremes(IMAGES, SCORES, "strokes"),
    "extremes of one image": lambda: plots.extremes(IMAGES[:1], SCORES[:1], "strokes"),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_figures_are_saved(draw, tmp_path):
    """A figure becomes a PNG of a readable size."""
    plots.save(draw(), tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as picture:
        picture.load()
        assert picture.format == "PNG" and picture.width >= 700


def test_same_input_same_bytes(tmp_path):
    """A report can be compared by its checksums."""
    for name in ("one.png", "two.png"):
        plots.save(FIGURES["latent plane"](), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_a_sheet_holds_every_image_in_its_cell():
    """Image k is in row k // columns and column k % columns; the rest is black."""
    sheet = plots.sheet(IMAGES[:5], 3)
    assert sheet.shape == (56, 84)
    for index in range(5):
        row, column = divmod(index, 3)
        assert np.array_equal(sheet[28 * row : 28 * row + 28, 28 * column : 28 * column + 28], IMAGES[index])
    assert not sheet[28:, 56:].any()


def test_the_latent_plane_spreads_its_points_evenly():
    """Each quarter of an axis holds a quarter of the points, however they are spread, and labels stand at the medians."""
    points = np.exp(3 * np.random.RandomState(5).randn(400, 2))
    axes = plots.latent_plane(points, np.arange(400) % 2).axes[0]
    drawn = axes.transAxes.inverted().transform(axes.transData.transform(points))
    counts, _ = np.histogram(drawn[:, 0], bins=np.linspace(0, 1, 5))
    assert (np.abs(counts - 100) < 12).all()
    labels = {text.get_text(): text.get_position() for text in axes.texts}
    np.testing.assert_allclose(labels["1"], np.median(points[1::2], axis=0))


def test_extremes_are_in_order():
    """The most normal come first above, the most anomalous below."""
    figure = plots.extremes(IMAGES, SCORES, "strokes", count=4)
    assert f"{SCORES.min():.4g}" in figure.axes[0].get_title()
    assert f"{SCORES.max():.4g}" in figure.axes[1].get_title()


def test_more_dimensions_are_drawn_along_the_axes_of_largest_variance():
    """Two large coordinates among small ones become the picture, whatever their place."""
    points = np.random.RandomState(2).randn(50, 4) * [0.01, 5, 0.01, 3]
    drawn = plots.latent_plane(points, None).axes[0].collections[0].get_offsets()
    expected = (points - points.mean(0))[:, [1, 3]]
    np.testing.assert_allclose(np.abs(np.corrcoef(drawn.T, expected.T)[[0, 1], [2, 3]]), 1, atol=0.01)
