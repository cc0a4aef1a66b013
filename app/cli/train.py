"""The command `train`. The heavy imports wait until it runs, so that `--help` is quick."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from app.cli import options
from app.training.optional import check_training_extra


def train(
    data: Annotated[str, typer.Option(help=f"Normal images: {options.DATA_SETS}.")] = "mnist",
    data_dir: options.DataDir = Path("data"),
    store: options.Store = options.DEFAULT_STORE,
    name: Annotated[str | None, typer.Option(help="Name of the detector; unset, the data set's.")] = None,
    variational: Annotated[bool, typer.Option("--variational", help="Train a variational autoencoder.")] = False,
    latent_dim: Annotated[int, typer.Option(min=1, help="Coordinates of an embedding.")] = 2,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one training step.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Adam's step size.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="Adam's L2 penalty on the weights.")] = 1e-5,
    seed: options.Seed = 0,
    alpha: options.Alpha = 0.01,
    calibration_share: options.Share = options.CALIBRATION_SHARE,
    scorer: options.Scorer = "residual",
    preprocess: options.Preparation = "auto",
    device: options.Device = "auto",
    strict: options.Strict = False,
    picture_every: Annotated[int, typer.Option(min=1, help="Epochs between two pictures of reconstructions.")] = 10,
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads; more rarely helps and changes the last bits of the weights.")
    ] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted training.")] = False,
) -> None:
    """Train a detector on normal images and publish it as a new version.

    A checkpoint is written after each epoch. After Ctrl-C or a crash, the same command with --resume continues, and
    ends with the same weights, bit for bit.
    """
    check_training_extra()
    options.check_data(data, strict=strict)
    from app.cli.progress import terminal_progress
    from app.cli.tables import print_published
    from app.training.config import TrainConfig
    from app.training.train import train as run_training

    config = TrainConfig(
        data=data,
        data_dir=data_dir,
        root=store.own,
        name=name,
        variational=variational,
        latent_dim=latent_dim,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
        alpha=alpha,
        calibration_share=calibration_share,
        scorer=scorer,
        preprocess=preprocess,
        device=device,
        picture_every=picture_every,
        threads=threads,
    )
    with terminal_progress(is_terminal=sys.stdout.isatty()) as progress:
        folder = run_training(config, resume=resume, progress=progress)
    print_published(folder)
