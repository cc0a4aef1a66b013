"""The commands that answer on the terminal: `score` files, list `models`. Everything heavy is imported when they run."""

import csv
import enum
import io
import json
import sys
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from app.detection.detector import Detector
    from app.detection.imaging.decode import Preprocess
    from app.detection.imaging.preprocess import PreprocessedImage

SHIPPED_STORE = Path(__file__).parents[2] / "model_store"

Row = dict[str, Any]

_COLUMNS = ("name", "score", "p_value", "is_anomaly", "reconstruction_error", "preprocess", "warnings", "error")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".npy"}  # what is read of a folder
_BATCH = 256  # images in memory at a time


class Format(enum.StrEnum):
    """How results are written."""

    table = "table"
    jsonl = "jsonl"
    csv = "csv"


class Preparation(enum.StrEnum):
    """What is done to an image before the network sees it."""

    auto = "auto"
    none = "none"
    digit = "digit"


StoreOption = Annotated[Path, typer.Option(help="Folder of detectors.")]


def score(
    paths: Annotated[list[Path], typer.Argument(help="Images, folders of images, .npy arrays; in any mixture.")],
    store: StoreOption = SHIPPED_STORE,
    model: Annotated[str, typer.Option(help="Which detector of the store.")] = "mnist",
    version: Annotated[int | None, typer.Option(min=1, help="Its version; unset, the highest.")] = None,
    alpha: Annotated[float | None, typer.Option(help="False-alarm rate to judge by; unset, the model's own.")] = None,
    preprocess: Annotated[Preparation, typer.Option(help="What is done to each image first.")] = Preparation.auto,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    output: Annotated[Format, typer.Option("--format", help="How to write the results.")] = Format.table,
    fail_on_anomaly: Annotated[bool, typer.Option("--fail-on-anomaly", help="Exit with 1 on an anomaly.")] = False,
) -> None:
    """Score images: how odd is each, and is it an anomaly?

    Exits with 2 when a file cannot be read; the others are scored all the same.
    """
    if alpha is not None and not 0 < alpha < 1:
        raise typer.BadParameter("must lie between 0 and 1, both excluded", param_hint="--alpha")
    try:
        detector, threshold = _load(store, model, version, device, alpha)
    except (RuntimeError, ValueError) as error:
        _fail(error)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    write = {Format.table: _write_table, Format.jsonl: _write_jsonl, Format.csv: _write_csv}[output]
    failed = anomalies = 0

    def counted() -> Iterator[Row]:
        nonlocal failed, anomalies
        for row in _score_all(detector, paths, threshold, preprocess.value):
            failed += "error" in row
            anomalies += row.get("is_anomaly", False)
            yield row

    write(counted(), f"{detector.bundle.label}: an anomaly scores above {threshold:.4g}")
    if failed:
        raise typer.Exit(2)
    if fail_on_anomaly and anomalies:
        raise typer.Exit(1)


def models(store: StoreOption = SHIPPED_STORE) -> None:
    """List the detectors in the store."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from app.detection import store as versions

    table = Table("model", "version", "created", "scorer", "alpha", "threshold", "data", box=None)
    for name in versions.names(store):
        for version in versions.versions(store, name):
            try:
                card = versions.load_card(store / name / str(version))
            except versions.StoreError as error:
                table.add_row(name, str(version), f"[red]not usable: {escape(str(error))}[/red]")
                continue
            created, data = card.created[:16].replace("T", " "), str(card.data.get("name", ""))
            table.add_row(name, str(version), created, card.scorer, f"{card.alpha:g}", f"{card.threshold:.4g}", data)
    if not table.row_count:
        _fail(f"There is no detector in {store}; train one with `oddigit train`.")
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _load(root: Path, model: str, version: int | None, device: str, alpha: float | None) -> tuple["Detector", float]:
    """The detector asked for, and the threshold to judge by."""
    from app.detection import store
    from app.detection.detector import Detector

    folder = store.find(root, model, version)
    bundle = store.load(folder)
    threshold = bundle.card.threshold if alpha is None else bundle.calibration.threshold(alpha)
    return Detector(bundle, device), threshold


def _score_all(detector: "Detector", paths: list[Path], threshold: float, preprocess: "Preprocess") -> Iterator[Row]:
    """A row an image, in the order of the paths; those that cannot be read have an `error`."""
    items = _read_all(paths, preprocess, detector.image_size)
    for readable, group in groupby(items, key=lambda item: not isinstance(item[1], str)):
        while batch := tuple(islice(group, _BATCH)):
            if readable:
                yield from _score_batch(detector, batch, threshold)
            else:
                yield from ({"name": name, "error": error} for name, error in batch)


def _read_all(paths: list[Path], preprocess: "Preprocess", size: int) -> Iterator[tuple[str, "PreprocessedImage | str"]]:
    """Each image with its name, or the sentence that says why it cannot be read."""
    for path in paths:
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES) if path.is_dir() else [path]
        if not files:
            yield str(path), "the folder holds no image and no .npy file"
        for file in files:
            yield from _read_file(file, preprocess, size)


def _read_file(file: Path, preprocess: "Preprocess", size: int) -> Iterator[tuple[str, "PreprocessedImage | str"]]:
    from app.detection.imaging.decode import ImageError, decode_array, decode_image, normalise
    from app.detection.imaging.preprocess import PreprocessedImage

    try:
        data = file.read_bytes()
        if file.suffix.lower() == ".npy":
            array = decode_array(data, max_images=sys.maxsize, size=size)
            for index, image in enumerate(array):
                yield f"{file}[{index}]", PreprocessedImage(normalise(image)[0])
        else:
            yield str(file), decode_image(data, preprocess=preprocess, size=size)
    except ImageError as error:
        yield str(file), str(error)
    except OSError as error:
        yield str(file), error.strerror or "cannot be read"


def _score_batch(detector: "Detector", batch: tuple[tuple[str, Any], ...], threshold: float) -> Iterator[Row]:
    import numpy as np

    from app.detection.detector import stack_features

    prepared = [image for _, image in batch]
    features = stack_features([image.features for image in prepared])
    detections = detector.detect(np.stack([image.image for image in prepared]), features)
    for index, (name, image) in enumerate(batch):
        score = float(detections.scores[index])
        yield {
            "name": name,
            "score": score,
            "p_value": float(detections.p_values[index]),
            "is_anomaly": score > threshold,
            "reconstruction_error": float(detections.reconstruction_errors[index]),
            "preprocess": list(image.preprocess),
            "warnings": list(image.warnings),
        }


def _write_table(rows: Iterator[Row], title: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("image", "score", "p-value", "verdict", "warnings", title=title, box=None, title_justify="left")
    for row in rows:
        if "error" in row:
            table.add_row(escape(row["name"]), "", "", "[yellow]not read[/yellow]", escape(row["error"]))
            continue
        verdict = "[red]anomaly[/red]" if row["is_anomaly"] else "[green]normal[/green]"
        table.add_row(escape(row["name"]), f"{row['score']:.3f}", f"{row['p_value']:.3g}", verdict, ", ".join(row["warnings"]))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _write_jsonl(rows: Iterator[Row], title: str) -> None:
    for row in rows:
        print(json.dumps(row))


def _write_csv(rows: Iterator[Row], title: str) -> None:
    writer = csv.DictWriter(sys.stdout, _COLUMNS, restval="")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: " ".join(value) if isinstance(value, list) else value for key, value in row.items()})


def _fail(problem: object) -> NoReturn:
    print(problem, file=sys.stderr)
    raise typer.Exit(2)
