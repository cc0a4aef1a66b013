"""The command `calibrate`. The heavy imports wait until it runs, so that `--help` is quick."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli import options
from app.training.optional import check_training_extra


def calibrate(
    context: typer.Context,
    data: Annotated[str, typer.Option(help=f"Normal images: {options.DATA_SETS}.")],
    weights: Annotated[Path | None, typer.Option(help="Import this state_dict file (.pth) instead of --model.")] = None,
    model: options.Model = "mnist",
    version: options.Version = None,
    data_dir: options.DataDir = Path("data"),
    store: options.Store = options.DEFAULT_STORE,
    name: Annotated[str | None, typer.Option(help="Name of the new version; unset, the model's or the data set's.")] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="False-alarm rate of the threshold, between 0 and 1; unset, the model's, or, with --weights, 0.01."),
    ] = None,
    seed: options.Seed = 0,
    calibration_share: options.Share = options.CALIBRATION_SHARE,
    scorer: options.Scorer = "residual",
    preprocess: Annotated[
        options.Preprocess,
        typer.Option(help="How uploads are prepared; auto: as the model's are, or, with --weights, as suits --data."),
    ] = "auto",
    device: options.Device = "auto",
    strict: options.Strict = False,
) -> None:
    """Publish a version without training: imported weights, or a detector with a threshold from other normal images.

    With --weights, the scorer is learnt from --data, and a held-back share of --data calibrates. Without --weights, all
    images of --data calibrate a detector of the store, whose weights and scorer stay as they are.
    """
    if weights is None:
        options.refuse_without_effect(context, ("seed", "calibration_share", "scorer"), "without --weights")
    else:
        options.refuse_without_effect(context, ("model", "version"), "with --weights")
    check_training_extra()
    options.check_data(data, strict=strict)
    from app.cli.progress import stages_on_terminal
    from app.cli.tables import print_published
    from app.detection.store import find
    from app.training.recalibrate import CalibrateConfig, import_weights, recalibrate

    config = CalibrateConfig(
        data=data,
        data_dir=data_dir,
        root=store.own,
        name=name,
        alpha=alpha,
        seed=seed,
        calibration_share=calibration_share,
        scorer=scorer,
        device=device,
        preprocess=preprocess,
    )
    with stages_on_terminal() as progress:
        if weights is not None:
            folder = import_weights(weights, config, progress)
        else:
            folder = recalibrate(find(store, model, version), config, progress)
    print_published(folder)
