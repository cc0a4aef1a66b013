"""The command `calibrate`. The heavy imports wait until it runs, so that `--help` is quick."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import (
    CALIBRATION_SHARE,
    DATA_SETS,
    SHIPPED_STORE,
    AlphaOption,
    DataDirOption,
    DeviceOption,
    ModelOption,
    ScorerOption,
    SeedOption,
    ShareOption,
    StoreOption,
    VersionOption,
    errors_as_sentences,
)
from app.training.optional import check_training_extra


def calibrate(
    data: Annotated[str, typer.Option(help=f"Normal images: {DATA_SETS}.")],
    weights: Annotated[Path | None, typer.Option(help="Import this state_dict file (.pth) instead of --model.")] = None,
    model: ModelOption = "mnist",
    version: VersionOption = None,
    data_dir: DataDirOption = Path("data"),
    store: StoreOption = SHIPPED_STORE,
    name: Annotated[str | None, typer.Option(help="Name of the new version; unset, the model's or the data set's.")] = None,
    alpha: AlphaOption = 0.01,
    seed: SeedOption = 0,
    calibration_share: ShareOption = CALIBRATION_SHARE,
    scorer: ScorerOption = "residual",
    device: DeviceOption = "auto",
) -> None:
    """Publish a version without training: imported weights, or a detector with a threshold from other normal images.

    With --weights, the scorer is learnt from --data, and a held-back share of --data calibrates. Without --weights, all
    images of --data calibrate a detector of the store, whose weights and scorer stay as they are.
    """
    with errors_as_sentences():
        check_training_extra()
        from app.cli.tables import print_published
        from app.detection.store import find
        from app.training.recalibrate import CalibrateConfig, import_weights, recalibrate

        config = CalibrateConfig(
            data=data,
            data_dir=data_dir,
            root=store,
            name=name,
            alpha=alpha,
            seed=seed,
            calibration_share=calibration_share,
            scorer=scorer,
            device=device,
        )
        if weights is not None:
            print_published(import_weights(weights, config))
        else:
            print_published(recalibrate(find(store, model, version), config))
