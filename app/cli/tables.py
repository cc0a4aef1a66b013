"""An evaluation on a terminal."""

import sys

from rich.console import Console
from rich.table import Table

from app.training.evaluate import Evaluation
from app.training.reporting.metrics import Share


def print_evaluation(evaluation: Evaluation) -> None:
    """Print false alarms, then the sets of anomalies and their mean."""
    console = Console(width=None if sys.stdout.isatty() else 200)  # a pipe has no width; rich would assume 80
    console.print(false_alarm_table(evaluation))
    tests = evaluation.uniformity
    console.print(
        f"Kolmogorov-Smirnov tests of the normals' p-values: p = {tests.against_uniform:.3g} against uniform, "
        f"p = {tests.against_calibration:.3g} against the calibration images\n",
        highlight=False,
    )
    if evaluation.sets:
        console.print(anomaly_table(evaluation))


def false_alarm_table(evaluation: Evaluation) -> Table:
    """How often normal images are flagged, and how often they should be."""
    title = f"{evaluation.model} ({evaluation.scorer}) on {evaluation.normal_images:,} normal images: {evaluation.normal}"
    table = Table("alpha asked for", "false alarms", "95 % interval", title=title, title_justify="left", box=None)
    for each in evaluation.false_alarms:
        table.add_row(f"{each.alpha:.1%}", f"{each.measured.value:.2%}", _interval(each.measured))
    return table


def anomaly_table(evaluation: Evaluation) -> Table:
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
    names = ("auroc", "plain_error_auroc", "aupr", "fpr_at_95_tpr")
    table.add_row("mean", "", *(f"{mean[name]:.3f}" for name in names), f"{mean['caught']:.1%}", "", style="bold")
    return table


def _interval(share: Share) -> str:
    return f"{share.low:.2%} - {share.high:.2%}"
