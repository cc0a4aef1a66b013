"""The commands `train`, `evaluate` and `calibrate`. Everything heavy is imported when they run."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.training.optional import check_training_extra

if TYPE_CHECKING:
    from app.training.evaluate import NamedImages

SHIPPED_STORE = Path(__file__).parents[2] / "model_store"
_SHARE = 1 / 3  # of MNIST's 60,000: 40,000 fit, 20,000 calibrate

_SETS = "mnist, fashion-mnist, kmnist, emnist-digits, a folder of images, an .npy or an .npz"

StoreOption = Annotated[Path, typer.Option(help="Folder of detectors.", show_default="model_store")]
DataDirOption = Annotated[Path, typer.Option(help="Where named data sets lie or are downloaded to.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Decides the split, the first weights and the order.")]
AlphaOption = Annotated[float, typer.Option(help="False-alarm rate that the threshold is set for, between 0 and 1.")]
ShareOption = Annotated[
    float, typer.Option(help="Share of the training images that is held back to calibrate with.", show_default="1/3")
]
VersionOption = Annotated[int | None, typer.Option(min=1, help="The model's version; unset, the highest.")]


def train(
    data: Annotated[str, typer.Option(help=f"Normal images: {_SETS}.")] = "mnist",
    data_dir: DataDirOption = Path("data"),
    store: StoreOption = SHIPPED_STORE,
    name: Annotated[str | None, typer.Option(help="What to call the detector; unset, as the data set.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="How often each image is learnt from.")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one step.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Adam's step size.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="Pull of the weights towards 0.")] = 1e-5,
    seed: SeedOption = 0,
    alpha: AlphaOption = 0.01,
    calibration_share: ShareOption = _SHARE,
    scorer: Annotated[str, typer.Option(help="What is made of the reconstruction error: residual or mse.")] = "residual",
    device: DeviceOption = "auto",
    picture_every: Annotated[int, typer.Option(min=1, help="Epochs between two pictures of reconstructions.")] = 10,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; more rarely helps, and other bits come out.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted training.")] = False,
) -> None:
    """Train a detector on normal images and publish it as a new version.

    A checkpoint is written after each epoch. After Ctrl-C or a crash, the same command with --resume continues, and
    ends with the same weights, bit for bit.
    """
    with _sentences():
        check_training_extra()
        from app.training.config import TrainConfig
        from app.training.progress import terminal_progress
        from app.training.train import train as run

        config = TrainConfig(
            data=data,
            data_dir=data_dir,
            root=store,
            name=name,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            seed=seed,
            alpha=alpha,
            calibration_share=calibration_share,
            scorer=scorer,
            device=device,
            picture_every=picture_every,
            threads=threads,
        )
        with terminal_progress(is_terminal=sys.stdout.isatty()) as progress:
            folder = run(config, resume=resume, progress=progress)
        _announce(folder)


def calibrate(
    data: Annotated[str, typer.Option(help=f"Normal images: {_SETS}.")],
    weights: Annotated[Path | None, typer.Option(help="Adopt this state_dict file (.pth) of the same network.")] = None,
    model: Annotated[str, typer.Option(help="Else: calibrate this detector of the store anew.")] = "mnist",
    version: VersionOption = None,
    data_dir: DataDirOption = Path("data"),
    store: StoreOption = SHIPPED_STORE,
    name: Annotated[str | None, typer.Option(help="What to call the new version's detector.")] = None,
    alpha: AlphaOption = 0.01,
    seed: SeedOption = 0,
    calibration_share: ShareOption = _SHARE,
    scorer: Annotated[
        str, typer.Option(help="For adopted weights: what is made of the reconstruction error: residual or mse.")
    ] = "residual",
    device: DeviceOption = "auto",
) -> None:
    """Publish a new version without training: adopted weights, or a detector with a threshold from other normal images.

    With --weights, the scorer is learnt from --data and a held-back share of it calibrates. Without, all images of --data
    calibrate a detector of the store, whose weights and scorer stay as they are.
    """
    with _sentences():
        check_training_extra()
        from app.detection.store import find
        from app.training.recalibrate import CalibrateConfig, adopt_weights, recalibrate

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
            _announce(adopt_weights(weights, config))
        else:
            _announce(recalibrate(find(store, model, version), config))


def evaluate(
    anomalies: Annotated[list[str] | None, typer.Argument(help=f"Sets of anomalies; each: {_SETS}.")] = None,
    model: Annotated[str, typer.Option(help="Which detector of the store.")] = "mnist",
    version: VersionOption = None,
    normal: Annotated[str | None, typer.Option(help="Normal images; unset, the model's own test images.")] = None,
    data_dir: DataDirOption = Path("data"),
    store: StoreOption = SHIPPED_STORE,
    out: Annotated[Path, typer.Option(help="Folder for pictures and evaluation.json.")] = Path("evaluation"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON rather than tables.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Measure a detector: false alarms on normal images, and how well it finds each set of anomalies.

    Intervals are 95 % (Clopper-Pearson). The published version is never changed: pictures and figures go to --out.
    """
    import json

    with _sentences():
        check_training_extra()
        from app.detection.detector import Detector
        from app.detection.store import find, load
        from app.training import evaluate as evaluation

        detector = Detector(load(find(store, model, version)), device)
        usual = evaluation.normal_test_images(detector.bundle.card, normal, data_dir)
        sets = _distinct([evaluation.named_images(source, data_dir) for source in anomalies or ()])
        found = evaluation.evaluate(detector, usual, sets, out)
        content = json.dumps(found.as_json(), indent=2, allow_nan=False)
        (out / "evaluation.json").write_text(content + "\n")
        if as_json:
            return typer.echo(content)
        from app.cli.tables import print_evaluation

        print_evaluation(found)
        return typer.echo(f"Pictures and figures: {out}")


@contextmanager
def _sentences() -> Iterator[None]:
    """Errors that a user can do something about: one sentence on stderr, exit code 2; Ctrl-C: 130."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        _say_and_exit(str(interrupt) or "Stopped.", 130)
    except Exception as error:
        if not _is_ours(error):
            raise
        _say_and_exit(f"{error}", 2)


def _is_ours(error: Exception) -> bool:
    """Our own errors, and those of the file system (a full disk, a folder without permission)."""
    return isinstance(error, OSError) or type(error).__module__.startswith("app.")


def _say_and_exit(sentence: str, code: int) -> None:
    typer.echo(sentence, err=True)
    raise typer.Exit(code)


def _distinct(sets: "list[NamedImages]") -> "list[NamedImages]":
    """Sets with the same name get a number, so that no picture overwrites another."""
    from dataclasses import replace

    seen: dict[str, int] = {}
    for index, each in enumerate(sets):
        seen[each.name] = seen.get(each.name, 0) + 1
        if seen[each.name] > 1:
            sets[index] = replace(each, name=f"{each.name}-{seen[each.name]}")
    return sets


def _announce(folder: Path) -> None:
    """What was published, and how well it does."""
    from app.detection.store import load_card

    card = load_card(folder)
    test: dict[str, Any] = card.metrics["normal_test"]
    alarms = ", ".join(f"{share:.2%} at alpha {alpha}" for alpha, share in test["false_alarm_rate"].items())
    typer.echo(f"Published {card.name}/{card.version} in {folder}")
    typer.echo(f"Threshold {card.threshold:.4g} for alpha {card.alpha:g}, from {card.calibration_images:,} images.")
    typer.echo(f"{test['images']:,} of {test['data']}: mean error {test['reconstruction_error']:.4f}; flagged {alarms}.")
