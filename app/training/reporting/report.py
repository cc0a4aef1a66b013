"""The report of a version: pictures for people, and the latent plane and sheets of images for the server's page."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.detection.bundle import Bundle
from app.detection.detector import Detections
from app.detection.imaging.decode import encode_png
from app.training.datasets import LabelledImages
from app.training.reporting import plots
from app.training.reporting.metrics import share

PICTURES = 32  # test images whose reconstructions are drawn
UNLABELLED = 255  # label in latent.npz of an image whose class is unknown
LATENT_POINTS = 2000  # most test images that the server's map shows: every k-th one
_LATENT_COLUMNS, _EPOCH_COLUMNS = 50, 16  # of the sheets that the page reads
_EPOCH_DIGITS = 5  # in the picture of the epochs


@dataclass(frozen=True)
class Report:
    """A bundle with its detections of normal test images and, after a training, the course of that training."""

    bundle: Bundle
    test: LabelledImages
    detections: Detections  # of the test images
    steps: NDArray[np.float32] | None = None  # [steps], the loss of every iteration
    reconstructions: Mapping[int, NDArray[np.uint8]] = field(default_factory=dict)  # epoch -> [PICTURES, S, S]
    flagged_uploads: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)  # group -> for each upload

    def write(self, folder: Path) -> None:
        """Write every file of the report into `folder`, which exists."""
        if self.steps is not None:
            self._write_losses(folder, self.steps)
        if self.reconstructions:
            self._write_epochs(folder)
        self._write_latent(folder)
        self._write_scores(folder)

    def _write_losses(self, folder: Path, steps: NDArray[np.float32]) -> None:
        np.save(folder / "loss_list.npy", steps.astype(np.float32), allow_pickle=False)
        epochs = self.bundle.card.losses
        plots.save(plots.losses(steps, epochs.fit, epochs.test), folder / "loss.png")

    def _write_epochs(self, folder: Path) -> None:
        """Write the last reconstructions, a few images over the epochs, and a sheet of all epochs for the page.

        The first row of the sheet are the images; a row for each epoch follows.
        """
        last, images = max(self.reconstructions), self.test.images[: len(next(iter(self.reconstructions.values())))]
        title = f"Test images (above) and their reconstructions (below) after {last} epochs"
        plots.save(plots.reconstructions(images, self.reconstructions[last], title), folder / f"reconstructions_{last:03d}.png")
        chosen = _of_different_classes(self.test, len(images))
        by_epoch = {epoch: drawn[chosen] for epoch, drawn in self.reconstructions.items()}
        plots.save(plots.epochs(images[chosen], by_epoch), folder / "epochs.png")
        columns = min(_EPOCH_COLUMNS, len(images))
        rows = np.concatenate([images[:columns], *(drawn[:columns] for drawn in self.reconstructions.values())])
        (folder / "epoch_images.png").write_bytes(encode_png(plots.sheet(rows, columns)))

    def _write_latent(self, folder: Path) -> None:
        """Write latent.npz (embeddings float32 [N, latent_dim], labels uint8 [N]), its picture, and a sheet of test images."""
        embeddings = self.detections.embeddings
        labels = _small_labels(self.test)
        np.savez_compressed(folder / "latent.npz", allow_pickle=False, embeddings=embeddings, labels=labels)
        if embeddings.shape[1] >= 2:
            figure = plots.latent_plane(embeddings, self.test.labels)
            plots.save(figure, folder / "latent.png")
        shown = self.test.images[:: max(1, -(-len(labels) // LATENT_POINTS))]
        (folder / "latent_images.png").write_bytes(encode_png(plots.sheet(shown, _LATENT_COLUMNS)))

    def _write_scores(self, folder: Path) -> None:
        card, found = self.bundle.card, self.detections
        plots.save(plots.errors(found.scores, card.threshold, card.alpha), folder / "errors.png")
        plots.save(plots.p_value_uniformity(found.p_values), folder / "p_values.png")
        plots.save(plots.extremes(self.test.images, found.scores, "Test images by their score"), folder / "extremes.png")
        if self.test.labels is not None:
            flagged = found.scores > card.threshold
            classes = np.unique(self.test.labels)[:20]
            by_class = {str(label): share(flagged[self.test.labels == label]) for label in classes}
            figure = plots.shares("False alarms by class of the test images", "flagged", by_class, card.alpha)
            plots.save(figure, folder / "false_alarms.png")
        if self.flagged_uploads:
            by_group = {f"{name} ({len(flags)})": share(flags) for name, flags in self.flagged_uploads.items()}
            figure = plots.shares("False alarms by group of uploads made of test images", "flagged", by_group, card.alpha)
            plots.save(figure, folder / "uploads.png")


def _of_different_classes(images: LabelledImages, count: int) -> NDArray[np.intp]:
    """Indices of a few of the first `count` images, of different classes where those are known."""
    if images.labels is None:
        return np.arange(min(_EPOCH_DIGITS, count))
    _, first = np.unique(images.labels[:count], return_index=True)
    return np.sort(first)[:_EPOCH_DIGITS]


def _small_labels(images: LabelledImages) -> NDArray[np.uint8]:
    labels = images.labels
    if labels is None or labels.min() < 0 or labels.max() >= UNLABELLED:
        return np.full(len(images), UNLABELLED, np.uint8)
    return labels.astype(np.uint8)
