"""The report of a version: pictures for people, and the latent plane for the server."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.detection.bundle import Bundle
from app.detection.detector import Detections
from app.training.datasets import LabelledImages
from app.training.reporting import plots

PICTURES = 32  # test images whose reconstructions are drawn
UNLABELLED = 255  # label in latent.npz of an image whose class is unknown


@dataclass(frozen=True)
class Report:
    """A bundle with its detections of normal test images and, after a training, the course of that training."""

    bundle: Bundle
    test: LabelledImages
    detections: Detections  # of the test images
    steps: NDArray[np.float32] | None = None  # [steps], the loss of every iteration
    reconstructions: Mapping[int, NDArray[np.uint8]] = field(default_factory=dict)  # epoch -> [PICTURES, S, S]

    def write(self, folder: Path) -> None:
        """Write every file of the report into `folder`, which exists."""
        if self.steps is not None:
            self._write_losses(folder, self.steps)
        for epoch, drawn in self.reconstructions.items():
            title = f"Test images (above) and their reconstructions (below) after {epoch} epochs"
            figure = plots.reconstructions(self.test.images[: len(drawn)], drawn, title)
            plots.save(figure, folder / f"reconstructions_{epoch:03d}.png")
        self._write_latent(folder)
        card = self.bundle.card
        plots.save(plots.errors(self.detections.scores, card.threshold, card.alpha), folder / "errors.png")

    def _write_losses(self, folder: Path, steps: NDArray[np.float32]) -> None:
        np.save(folder / "loss_list.npy", steps.astype(np.float32), allow_pickle=False)
        epochs = self.bundle.card.losses
        plots.save(plots.losses(steps, epochs.fit, epochs.test), folder / "loss.png")

    def _write_latent(self, folder: Path) -> None:
        """Write latent.npz (embeddings float32 [N, latent_dim], labels uint8 [N]) and its picture."""
        embeddings = self.detections.embeddings
        labels = _small_labels(self.test)
        np.savez_compressed(folder / "latent.npz", allow_pickle=False, embeddings=embeddings, labels=labels)
        if embeddings.shape[1] >= 2:
            figure = plots.latent_plane(embeddings, self.test.labels)
            plots.save(figure, folder / "latent.png")


def _small_labels(images: LabelledImages) -> NDArray[np.uint8]:
    labels = images.labels
    if labels is None or labels.min() < 0 or labels.max() >= UNLABELLED:
        return np.full(len(images), UNLABELLED, np.uint8)
    return labels.astype(np.uint8)
