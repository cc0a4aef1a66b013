"""Options that several commands share."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from app.detection.imaging.decode import Preprocess as Preprocess
from app.detection.store_path import Stores, read_stores
from app.training.config import CALIBRATION_SHARE as CALIBRATION_SHARE
from app.training.config import ScorerName

DEFAULT_STORE = Stores(())  # stands for the user's own and the shipped one
DATA_SETS = "mnist, fashion-mnist, kmnist, emnist-digits, a folder of images, an .npy or an .npz"


Store = Annotated[
    Stores,
    typer.Option(
        parser=lambda value: read_stores("" if value is DEFAULT_STORE else str(value), os.environ),
        envvar="ODDIGIT_STORE",
        metavar="FOLDERS",
        help="Folders of detectors, separated by colons; new versions go to the first.",
        show_default="your data folder, then the shipped store",
    ),
]
Model = Annotated[str, typer.Option(help="Which detector of the store.")]
Version = Annotated[
    int | None,
    typer.Option(min=1, help="The detector's version; unset, the highest in the first of the folders with the detector."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
DataDir = Annotated[Path, typer.Option(help="Where named data sets lie or are downloaded to.")]
Seed = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Decides the split, the initial weights and the order of the images.")
]
Alpha = Annotated[float, typer.Option(help="False-alarm rate that the threshold is set for, between 0 and 1.")]
Share = Annotated[
    float, typer.Option(help="Share of the training images that is held back to calibrate with.", show_default="1/3")
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse a folder with files that are no images; otherwise they are skipped and named.")
]
Preparation = Annotated[
    Preprocess,
    typer.Option(help="How uploads are prepared: as MNIST's digits, or only resized; auto: as suits --data."),
]
Scorer = Annotated[ScorerName, typer.Option(help="How the reconstruction error becomes a score: residual or mse.")]


def refuse_without_effect(context: typer.Context, names: Sequence[str], reason: str) -> None:
    """Raise BadParameter for the first of these parameters that the command line gives; `reason` says when it has no effect."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"it has no effect {reason}", param_hint=max(parameter.opts, key=len))


def check_data(data: str, *, strict: bool) -> None:
    """If `strict`, raise DataError for a folder with files that cannot be read as images."""
    if strict:
        from app.training.datasets import check_files

        check_files(data)


def printable(text: str, keep: str = "\n") -> str:
    """`text` with control characters as escape sequences: the name of a file must not move the cursor or change colours.

    The characters of `keep` stay. In the cell of a table not even a line end may stay.
    """
    return "".join(each if each.isprintable() or each in keep else repr(each)[1:-1] for each in text)
