"""The command `score`. The heavy imports wait until it runs, so that `--help` is quick."""

import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from app.cli import options
from app.cli.bulk import Engine, quantity, score_in_bulk
from app.cli.progress import counted_on_terminal
from app.training.interrupt import Interrupt

Row = dict[str, Any]
Format = Literal["table", "jsonl", "csv"]  # of the results

_COLUMNS = ("name", "score", "p_value", "is_anomaly", "reconstruction_error", "preprocess", "warnings", "error")


def score(
    context: typer.Context,
    paths: Annotated[list[str], typer.Argument(help="Images, folders, patterns, .npy and .npz arrays; - for standard input.")],
    store: options.Store = options.DEFAULT_STORE,
    model: options.Model = "mnist",
    version: options.Version = None,
    alpha: Annotated[float | None, typer.Option(help="False-alarm rate of the verdict; unset, the model's own.")] = None,
    preprocess: Annotated[
        options.Preprocess, typer.Option(help="How each image is prepared; auto: as the model's card says.")
    ] = "auto",
    device: options.Device = "auto",
    output: Annotated[Format, typer.Option("--format", help="How to write the results.")] = "table",
    fail_on_anomaly: Annotated[bool, typer.Option("--fail-on-anomaly", help="Exit with 1 on an anomaly.")] = False,
    any_file: Annotated[
        bool, typer.Option("--any-file", help="Read FIFOs and devices among the paths too; they may never end.")
    ] = False,
    to: Annotated[
        Path | None,
        typer.Option(
            help="Write Parquet files into this folder, with all cores; sources may be globs, .tar, .parquet or addresses too."
        ),
    ] = None,
    engine: Annotated[Engine, typer.Option(help="With --to: this machine, or a cluster of Ray.")] = "local",
    processes: Annotated[int | None, typer.Option(min=1, help="With --to and local: processes; unset, one a core.")] = None,
) -> None:
    """Score images: how anomalous is each, and is it an anomaly?

    Ends with 0; with 1 for an anomaly where --fail-on-anomaly asks for that; with 2 when an image cannot be read, or too
    few images of its kind were calibrated for --alpha (the other images are scored); with 130 after Ctrl-C, when the rows so
    far are written. With --to, such an image is a row with its error, which does not change the exit code, and an image that an
    interrupted job has scored is not scored again.
    """
    _check_options(context, alpha, to)
    from app.cli.score_inputs import read_all
    from app.detection.imaging.decode import choose_preprocess
    from app.detection.store import find, load
    from app.scaling.scoring import ImageScorer, Job

    folder = find(store, model, version)
    bundle = load(folder)
    threshold = bundle.card.threshold if alpha is None else bundle.calibration.threshold(alpha)
    preparation = choose_preprocess(preprocess, bundle.card.preprocess)
    job = Job(str(folder.resolve()), str(to.resolve()) if to else "", preparation, alpha, device)
    if to is not None:
        anomalies = score_in_bulk(paths, job, bundle.card.architecture.image_size, engine, processes)
        raise typer.Exit(int(fail_on_anomaly and anomalies > 0))
    resized = "; images are only resized" if preparation == "none" else ""
    title = f"{bundle.label}: an anomaly scores above {threshold:.4g}{resized}"
    scorer = ImageScorer(job)
    rows = scorer.score(read_all(paths, scorer.image_size, any_file))
    counts = _write(({key: row[key] for key in _COLUMNS if key in row} for row in rows), output, title)
    if counts["interrupted"]:
        raise typer.Exit(130)
    if counts["failed"]:
        raise typer.Exit(2)
    if fail_on_anomaly and counts["anomalies"]:
        raise typer.Exit(1)


def _check_options(context: typer.Context, alpha: float | None, to: Path | None) -> None:
    """Raise BadParameter for a wrong alpha, or an option that has no effect with --to or without it."""
    if alpha is not None and not 0 < alpha < 1:
        raise typer.BadParameter("must lie between 0 and 1, both excluded", param_hint="--alpha")
    if to is None:
        options.refuse_without_effect(context, ("engine", "processes"), "without --to")
        return
    options.refuse_without_effect(context, ("output", "any_file"), "with --to")
    if re.match(r"[a-z][a-z0-9+.-]*:/", str(to)):  # a path has one slash of "://" left
        raise typer.BadParameter("must be a folder of this machine, not an address", param_hint="--to")
    if "-" in context.params["paths"]:
        raise typer.BadParameter("standard input cannot be read with --to", param_hint="PATHS")


def _write(rows: Iterator[Row], output: Format, title: str) -> Counter[str]:
    """Write the rows and a summary; returns the counts of `_counted`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be valid text
    counts: Counter[str] = Counter()
    rows = _counted(counted_on_terminal(rows), counts)
    if output == "table":
        _write_table(rows, title)
    elif output == "jsonl":
        _write_jsonl(rows)
    else:
        _write_csv(rows)
    sys.stdout.flush()  # before the summary, which counts what was written
    typer.echo(_summary(counts), err=output != "table")
    return counts


def _summary(counts: Counter[str]) -> str:
    """What was found, in one line."""
    anomalies, images = counts["anomalies"], counts["images"]
    unread = f"; {counts['failed']:,} could not be scored" if counts["failed"] else ""
    stopped = " Stopped by Ctrl-C." if counts["interrupted"] else ""
    found = quantity(anomalies, "anomaly", "anomalies")
    return f"{quantity(images, 'image', 'images')}: {images - anomalies:,} normal, {found}{unread}.{stopped}"


def _counted(rows: Iterator[Row], counts: Counter[str]) -> Iterator[Row]:
    """Pass the rows on, and count those that were written. Ctrl-C ends them, but not in the middle of writing one."""
    try:
        for row in rows:
            with Interrupt(notice=b"") as interrupt:
                yield row
            counts["failed" if "error" in row else "images"] += 1
            counts["anomalies"] += row.get("is_anomaly", False)
            interrupt.check()
    except KeyboardInterrupt:
        counts["interrupted"] = 1


def _write_table(rows: Iterator[Row], title: str) -> None:
    from rich.table import Column, Table

    from app.cli.tables import cell, console

    figures = (Column(name, no_wrap=True) for name in ("score", "p-value", "verdict"))
    image = Column("image", overflow="fold")  # not cut, because long paths may differ in any part
    table = Table(image, *figures, "warnings", title=title, box=None, title_justify="left")
    for row in rows:
        name = cell(row["name"])
        if "error" in row:
            table.add_row(name, "", "", "[yellow]not scored[/yellow]", cell(row["error"]))
            continue
        verdict = "[red]anomaly[/red]" if row["is_anomaly"] else "[green]normal[/green]"
        table.add_row(name, f"{row['score']:.3f}", f"{row['p_value']:.3g}", verdict, ", ".join(row["warnings"]))
    console(pipe_width=160).print(table)


def _write_jsonl(rows: Iterator[Row]) -> None:
    for row in rows:
        print(json.dumps(row), flush=True)


def _write_csv(rows: Iterator[Row]) -> None:
    writer = csv.DictWriter(sys.stdout, _COLUMNS, restval="")
    writer.writeheader()
    for row in rows:
        row |= {key: options.printable(row[key]) for key in ("name", "error") if key in row}
        writer.writerow({key: " ".join(value) if isinstance(value, list) else value for key, value in row.items()})
