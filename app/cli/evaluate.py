"""The command `evaluate`. The heavy imports wait until it runs, so that `--help` is quick."""

import json
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import options
from app.training.optional import check_training_extra

if TYPE_CHECKING:
    from app.training.evaluate import NamedImages


def evaluate(
    anomalies: Annotated[list[str] | None, typer.Argument(help=f"Sets of anomalies; each: {options.DATA_SETS}.")] = None,
    model: options.Model = "mnist",
    version: options.Version = None,
    normal: Annotated[str | None, typer.Option(help="Normal images; unset, the model's own test images.")] = None,
    data_dir: options.DataDir = Path("data"),
    store: options.Store = options.DEFAULT_STORE,
    out: Annotated[Path, typer.Option(help="Folder for pictures and evaluation.json.")] = Path("evaluation"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON rather than tables.")] = False,
    device: options.Device = "auto",
) -> None:
    """Measure a detector: false alarms on normal images, and how well it finds each set of anomalies.

    Intervals are 95 % (Clopper-Pearson). The published version is never changed: pictures and figures go to --out.
    """
    check_training_extra()
    from app.cli.progress import stages_on_terminal
    from app.cli.tables import print_evaluation
    from app.detection.detector import Detector
    from app.detection.store import find, load
    from app.training import evaluate as evaluation

    detector = Detector(load(find(store, model, version)), device)
    card = detector.bundle.card
    with stages_on_terminal() as progress:
        normal_images = evaluation.normal_test_images(card, normal, data_dir, progress)
        sets = [evaluation.named_images(source, data_dir, card.preprocess, progress) for source in anomalies or ()]
        result = evaluation.evaluate(detector, normal_images, _with_distinct_names(sets, normal_images.name), out, progress)
    content = json.dumps(result.as_json(), indent=2, allow_nan=False)
    (out / "evaluation.json").write_text(content + "\n")
    if as_json:
        typer.echo(content)
    else:
        print_evaluation(result)
        typer.echo(f"Pictures and figures: {out}")


def _with_distinct_names(sets: "list[NamedImages]", taken: str) -> "list[NamedImages]":
    """Add a number to repeated names, so that no picture overwrites another, or that of the normal images."""
    names = {taken}
    result = []
    for images in sets:
        candidates = chain([images.name], (f"{images.name}-{number}" for number in count(2)))
        name = next(name for name in candidates if name not in names)
        names.add(name)
        result.append(replace(images, name=name))
    return result
