"""The training: a `TrainConfig` in, a published version out.

The algorithm and its settings are the tutorial's: mean squared error, Adam, shuffled batches of 128. It is fast because the
data set is one tensor on the device and the loop never waits for a value of the device. The same configuration on the same
machine and device gives the same weights to the bit, whether the training was interrupted and resumed or not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from app.detection.conformal import check_images
from app.detection.model_card import EpochLosses
from app.detection.runtimes import choose_device
from app.network.autoencoder import Autoencoder, ModelConfig, make_autoencoder
from app.training.calibration import CHUNK, Provenance, flatten
from app.training.checkpoint import State, checkpoint_path, damaged, load_checkpoint, remove_checkpoint, save_checkpoint
from app.training.config import TrainConfig, TrainingError
from app.training.datasets import DataSet, load_dataset
from app.training.interrupt import Interrupt, was_interrupted
from app.training.progress import SILENT, Progress
from app.training.publishing import TrainingCurves, check_writable, describe_data, fit_and_publish
from app.training.reporting.report import PICTURES
from app.training.splits import Splits, split
from app.training.training_step import TrainingStep

FIT_SAMPLE = 10_000  # fit images that the loss after an epoch is measured on; all of them would add 50 % to an epoch


class TrainingInterrupted(KeyboardInterrupt):
    """The training was stopped by Ctrl-C; the message says how to continue."""


@dataclass
class History:
    """The course of a training."""

    steps: list[Tensor] = field(default_factory=list)  # for each epoch the loss of every iteration [steps]
    fit: list[float] = field(default_factory=list)  # mean squared error of a fit sample: untrained, then each epoch
    test: list[float] = field(default_factory=list)  # the same of all test images
    pictures: dict[int, Tensor] = field(default_factory=dict)  # epoch -> reconstructions, uint8 [K, S, S]


class Training:
    """The state of a training: the network, the optimizer, the random numbers and the history. A checkpoint holds all of it."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = ModelConfig(latent_dim=config.latent_dim, variational=config.variational)
            self.model = make_autoencoder(network).to(device)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
            capturable=device.type == "cuda",
        )
        self.step = TrainingStep(self.model, self.optimizer)
        self.rng = torch.Generator().manual_seed(config.seed)
        self.history = History()

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.history.steps)

    def state(self) -> State:
        """The content of a checkpoint."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "shuffle": self.rng.get_state(),
            **{entry.name: getattr(self.history, entry.name) for entry in fields(History)},
        }

    def restore(self, state: State) -> None:
        """Restore the content of a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.set_state(state["shuffle"])
        self.history = History(**{entry.name: state[entry.name] for entry in fields(History)})


def train(config: TrainConfig, *, resume: bool = False, progress: Progress = SILENT) -> Path:
    """Train, calibrate, evaluate and publish -> the folder of the new version.

    Raises:
        DataError, DeviceError, TrainingError, CheckpointError: before anything is written.
        CalibrationError: there are too few images for this alpha; also before anything is written.
        TrainingInterrupted: Ctrl-C was pressed; the checkpoint stays.
    """
    device = torch.device(choose_device(config.device, "torch"))
    check_writable(config.root, config.name)
    dataset = load_dataset(config.data, data_dir=config.data_dir, preprocess=config.preprocess, progress=progress)
    config = replace(config, name=config.name or dataset.name, device=str(device), preprocess=dataset.preprocess)
    splits = split(dataset, config.seed, config.calibration_share)
    check_images(config.alpha, len(splits.calibration))
    training = Training(config, device)
    checkpoint = checkpoint_path(config, dataset)
    if resume:
        _restore(training, config, checkpoint)
    try:
        with using_threads(config.threads):  # the scorer's bits depend on the number of threads too
            with Interrupt() as interrupt:
                run_epochs(training, config, splits, checkpoint, progress, interrupt)
            folder = _publish(training, config, dataset, splits, progress)
    except BaseException as error:
        if not was_interrupted(error):
            raise
        raise TrainingInterrupted(_how_to_continue(training, config, checkpoint)) from None
    remove_checkpoint(checkpoint)
    return folder


def _restore(training: Training, config: TrainConfig, checkpoint: Path) -> None:
    """Continue from the checkpoint. Raises CheckpointError."""
    state = load_checkpoint(checkpoint, config)
    try:
        training.restore(state)
    except Exception as error:  # a part is missing, or is of another type, shape or training
        raise damaged(checkpoint) from error


def run_epochs(
    training: Training, config: TrainConfig, splits: Splits, checkpoint: Path, progress: Progress, interrupt: Interrupt
) -> None:
    """Train until `config.epochs` are done, and write a checkpoint after each epoch.

    Raises:
        TrainingError: the loss is no longer a finite number.
        KeyboardInterrupt: Ctrl-C was pressed; raised after the checkpoint of the epoch.
    """
    device = next(training.model.parameters()).device
    fit, test = flatten(splits.fit.images, device), flatten(splits.test.images, device)  # [N, pixels] each
    progress.start(training.epoch, config.epochs, len(fit))
    if training.epoch == 0:
        record_epoch(training, config, fit, test, progress)
    while training.epoch < config.epochs:
        run_epoch(training, config, fit, progress)
        record_epoch(training, config, fit, test, progress)
        save_checkpoint({**training.state(), "config": config.described()}, checkpoint)
        interrupt.check()


def run_epoch(training: Training, config: TrainConfig, images: Tensor, progress: Progress) -> None:
    """Train on all images [N, pixels] once, in a random order drawn from `training.rng`.

    Raises:
        TrainingError: the loss is no longer a finite number.
    """
    order = torch.randperm(len(images), generator=training.rng).to(images.device)
    losses = []
    for batch in torch.split(order, config.batch_size):
        noise = training.model.draw_noise(len(batch), training.rng)  # None but for a variational autoencoder
        on_device = None if noise is None else noise.to(images.device)
        losses.append(training.step(images[batch], on_device))  # loss.item() would wait
        progress.advance(len(batch))
    steps = torch.stack(losses)
    if not bool(torch.isfinite(steps).all()):
        raise TrainingError(
            f"The loss is no longer a number in epoch {training.epoch + 1}; use a smaller --learning-rate than "
            f"{config.learning_rate:g}."
        )
    training.history.steps.append(steps.cpu())


@torch.inference_mode()
def mean_error(model: Autoencoder, images: Tensor) -> float:
    """The mean squared error of the reconstructions of images [N, pixels]."""
    sums = [nn.functional.mse_loss(model(chunk), chunk, reduction="sum") for chunk in torch.split(images, CHUNK)]
    return float(torch.stack(sums).cpu().double().sum() / images.numel())


def record_epoch(training: Training, config: TrainConfig, fit: Tensor, test: Tensor, progress: Progress) -> None:
    """Record the losses after an epoch and, every `picture_every` epochs, the reconstructions of the first test images."""
    history = training.history
    history.fit.append(mean_error(training.model, fit[:FIT_SAMPLE]))
    history.test.append(mean_error(training.model, test))
    if training.epoch % config.picture_every == 0 or training.epoch == config.epochs:
        with torch.inference_mode():
            reconstructions = (training.model(test[:PICTURES]).cpu() + 1) * 127.5
        side = training.model.config.image_size
        history.pictures[training.epoch] = reconstructions.round().clamp(0, 255).to(torch.uint8).view(-1, side, side)
    progress.finish_epoch(training.epoch, history.fit[-1], history.test[-1])


def _publish(training: Training, config: TrainConfig, dataset: DataSet, splits: Splits, progress: Progress) -> Path:
    history = training.history
    provenance = Provenance(
        name=str(config.name),
        alpha=config.alpha,
        preprocess=dataset.preprocess,
        training={**config.described(), "data": dataset.name},
        data=describe_data(config.data, dataset, splits, config.seed, config.calibration_share),
        losses=EpochLosses(fit=tuple(history.fit), test=tuple(history.test)),
    )
    curves = TrainingCurves(
        steps=torch.cat(history.steps).numpy(),
        reconstructions={epoch: pixels.numpy() for epoch, pixels in history.pictures.items()},
    )
    device = torch.device(config.device)
    model = training.model.eval()
    return fit_and_publish(model, config.scorer, splits, provenance, config.root, device, config.seed, curves, progress)


def _how_to_continue(training: Training, config: TrainConfig, checkpoint: Path) -> str:
    if not checkpoint.exists():
        return "Stopped before the first epoch was done; nothing is kept."
    done = f"Stopped after epoch {training.epoch} of {config.epochs}"
    return f"{done}; repeat the command with --resume to continue."


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Let torch use `count` CPU threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
