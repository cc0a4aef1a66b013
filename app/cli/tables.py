"""Results as tables and sentences on the terminal."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.cli.options import printable

if TYPE_CHECKING:
    from app.training.evaluate import Evaluation
    from app.training.reporting.metrics import Share


_MIN_WIDTH = 60  # a narrower terminal continues the lines of a table below, where rich would cut its figures


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """Leave a closed pipe to errors_as_sentences; rich would exit with 1."""
        raise BrokenPipeError


def console(pipe_width: int = 200) -> Console:
    """The terminal, at least _MIN_WIDTH columns, or standard output at `pipe_width` columns where it is a file or a pipe."""
    if not sys.stdout.isatty():
        return _Output(width=pipe_width)  # rich assumes 80 columns for a pipe
    out = _Output()
    out.width = max(out.width, _MIN_WIDTH)
    return out


def cell(text: str) -> str:
    """Escape markup, control characters and line ends of untrusted text for a cell of a table."""
    return escape(printable(text, keep=""))


def print_published(folder: Path) -> None:
    """Print the name, the threshold and the test figures of a published version."""
    from app.detection.store import load_card

    card = load_card(folder)
    test: dict[str, Any] = card.metrics["normal_test"]
    alarms = ", ".join(f"{share:.2%} at alpha {alpha}" for alpha, share in test["false_alarm_rate"].items())
    typer.echo(f"Published {card.name}/{card.version} in {folder}")
    typer.echo(f"Threshold {card.threshold:.4g} for alpha {card.alpha:g}, from {card.calibration_images:,} images.")
    if card.preprocess == "none":
        typer.echo("Uploads are only resized to the network's size (preprocess none).")
    typer.echo(f"{test['images']:,} of {test['data']}: mean error {test['reconstruction_error']:.4f}; flagged {alarms}.")


def print_evaluation(evaluation: "Evaluation") -> None:
    """Print the false alarms on normal images, then the figures of each set of anomalies and their mean."""
    out = console()
    out.print(_false_alarm_table(evaluation))
    tests = evaluation.uniformity
    out.print(
        f"Kolmogorov-Smirnov tests of the normals' p-values: p = {tests.against_uniform:.3g} against uniform, "
        f"p = {tests.against_calibration:.3g} against the calibration images\n",
        highlight=False,
    )
    if evaluation.uncalibrated:
        out.print(
            f"{evaluation.uncalibrated:,} of the images are of kinds that the detector was not calibrated on: alpha is not "
            "promised for them.\n",
            highlight=False,
        )
    if evaluation.sets:
        out.print(_anomaly_table(evaluation))


def _false_alarm_table(evaluation: "Evaluation") -> Table:
    """A row for each alpha: the measured share of normal images that are flagged, and its interval."""
    title = f"{evaluation.model} ({evaluation.scorer}) on {evaluation.normal_images:,} normal images: {evaluation.normal}"
    table = Table("alpha asked for", "false alarms", "95 % interval", title=title, title_justify="left", box=None)
    for each in evaluation.false_alarms:
        table.add_row(f"{each.alpha:.1%}", f"{each.measured.value:.2%}", _interval(each.measured))
    return table


def _anomaly_table(evaluation: "Evaluation") -> Table:
    """A row for each set of anomalies, the mean last."""
    title = f"Anomalies: AUROC, that of the plain error, AUPR, FPR at 95 % TPR, caught at alpha {evaluation.alpha:g}"
    columns = ("set", "images", "AUROC", "plain", "AUPR", "FPR95", "caught", "95 % interval")
    table = Table(*columns, title=title, title_justify="left", box=None)
    for each in evaluation.sets:
        rank = each.ranking
        figures = (rank.auroc, each.plain_error.auroc, rank.aupr, rank.fpr_at_95_tpr)
        cells = [f"{figure:.3f}" for figure in figures]
        table.add_row(each.name, f"{each.images:,}", *cells, f"{each.caught.value:.1%}", _interval(each.caught))
    mean = evaluation.mean
    figure_names = ("auroc", "plain_error_auroc", "aupr", "fpr_at_95_tpr")
    table.add_row("mean", "", *(f"{mean[name]:.3f}" for name in figure_names), f"{mean['caught']:.1%}", "", style="bold")
    return table


def _interval(share: "Share") -> str:
    return f"{share.low:.2%} - {share.high:.2%}"
