"""The detector: a batch of images in, `Detections` out, in one forward pass. Knows no file, no HTTP and no data set.

The only place outside training where tensors meet the model. Stateless between calls and safe to share between threads.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from app.detection.bundle import Bundle, self_check_images
from app.detection.imaging.decode import normalise
from app.network.arrays import Array, place, to_numpy
from app.network.autoencoder import Layers
from app.network.scoring import reconstruction_error

Images = NDArray[np.float32]

_SELF_CHECK_RTOL = 1e-3  # devices sum in different orders; a wrong file or kernel is off by far more


class DeviceError(RuntimeError):
    """The device asked for is not there; the message says what is."""


class SelfCheckError(RuntimeError):
    """A bundle does not reproduce its card's scores on this device."""


def pick_device(name: str = "auto") -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps` -> a device that is there. `auto` takes CUDA when present, else the CPU.

    Raises:
        DeviceError: the device asked for is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"{name!r} is no device; use auto, cpu, cuda, cuda:N or mps.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"{name} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices; use auto or cpu.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("mps was asked for, but torch sees no Apple GPU; use auto or cpu.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"{name!r} is not supported; use auto, cpu, cuda, cuda:N or mps.")
    return device


class Detections(NamedTuple):
    """What a detector says of N images, in their order."""

    scores: NDArray[np.float32]  # [N], higher = more anomalous
    p_values: NDArray[np.float64]  # [N], in (0, 1]
    reconstruction_errors: NDArray[np.float32]  # [N], mean squared residual
    embeddings: NDArray[np.float32]  # [N, latent_dim], unbounded
    reconstructions: NDArray[np.float32] | None = None  # [N, 1, S, S] in [-1, 1], where asked for
    error_maps: NDArray[np.float32] | None = None  # [N, S, S], not negative, where asked for

    def part(self, start: int, stop: int) -> "Detections":
        """The images from `start` to before `stop`, without copying."""
        return Detections._make(None if values is None else values[start:stop] for values in self)

    @classmethod
    def join(cls, parts: Sequence["Detections"]) -> "Detections":
        """Several detections as one, in order."""
        if len(parts) == 1:
            return parts[0]
        return cls._make(None if column[0] is None else np.concatenate(column) for column in zip(*parts, strict=True))


class Detector:
    """A bundle at work on one device."""

    def __init__(self, bundle: Bundle, device: str = "auto") -> None:
        """Move the bundle to `device`. Raises DeviceError where that is not there."""
        self.bundle = bundle
        self.device = pick_device(device)
        self._network = bundle.model.to(self.device).eval()
        self._layers = Layers(bundle.model, self.device)
        self._scorer = bundle.scorer.to(self.device)
        self._calibration = bundle.calibration
        self.image_size = bundle.model.config.image_size

    def detect(
        self,
        images: Images,
        features: NDArray[np.float32] | None = None,
        *,
        embeddings: bool = False,
        reconstructions: bool = False,
        error_maps: bool = False,
    ) -> Detections:
        """Judge images [N, 1, S, S], float32 in [-1, 1]; the pictures are left out unless asked for.

        `evidence` [N, K] is what the preparation of each image saw; NaN for images that were left untouched. `embeddings` are
        wanted as the network itself computes them, in its single precision: up to 1e-4 from what the scores are made of.
        """
        shape = (len(images), self.image_size, self.image_size)
        flat = place(images.reshape(len(images), -1), self.device)  # [N, S * S]
        codes = self._layers.encode(flat)  # [N, latent_dim]
        made = self._layers.decode(codes)  # [N, S * S]
        scores = self._on_one_scale(to_numpy(self._scorer.score(flat, made, codes)), features)
        return Detections(
            scores=scores,
            p_values=self._calibration.p_values(scores),
            reconstruction_errors=to_numpy(reconstruction_error(flat, made)),
            embeddings=self._embed(flat) if embeddings else to_numpy(codes),
            reconstructions=to_numpy(made).reshape(images.shape) if reconstructions else None,
            error_maps=to_numpy(self._scorer.error_map(flat, made, codes)).reshape(shape) if error_maps else None,
        )

    @torch.inference_mode()
    def _embed(self, images: Array) -> NDArray[np.float32]:
        return to_numpy(self._network.encode(torch.as_tensor(images)))

    def _on_one_scale(self, scores: NDArray[np.float32], features: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Scores [N] of untouched images stay; those of prepared ones are joined with their features [N, K]."""
        if features is None or self.bundle.uploads is None:
            return scores
        prepared = ~np.isnan(features[:, 0])
        placed = scores.copy()
        placed[prepared] = self.bundle.uploads.score(scores[prepared], features[prepared])
        return placed

    def self_check(self) -> None:
        """Score the card's own images again. Raises SelfCheckError where the scores differ from the card's."""
        card = self.bundle.card
        images = normalise(self_check_images(card.self_check.seed, self.image_size))
        expected = np.array(card.self_check.scores, np.float32)
        scores = self.detect(images).scores
        if scores.shape != expected.shape or not np.allclose(scores, expected, rtol=_SELF_CHECK_RTOL, atol=0):
            raise SelfCheckError(
                f"{self.bundle.label} scores its self-check images differently on {self.device} than its card says; "
                "it is not served."
            )

    def decode(self, embeddings: NDArray[np.float32]) -> Images:
        """Latent codes [N, latent_dim] -> images [N, 1, S, S] in [-1, 1]."""
        return to_numpy(self._layers.decode(place(embeddings, self.device))).reshape(-1, 1, self.image_size, self.image_size)


def stack_features(features: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float32] | None:
    """Evidence [K] of each image, None for untouched ones -> [N, K] with NaN for those, or None where all are untouched."""
    known = next((seen for seen in features if seen is not None), None)
    if known is None:
        return None
    nothing = np.full_like(known, np.nan)
    return np.stack([nothing if seen is None else seen for seen in features])
