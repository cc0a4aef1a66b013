"""The detector: a bundle loaded on one device. Images in, scores, p-values, embeddings and error maps out.

Stateless between calls and safe under concurrency.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.detection.bundle import Bundle, BundleError
from app.detection.imaging.upload_features import FEATURE_NAMES
from app.detection.imaging.upload_warnings import UNCALIBRATED
from app.detection.model_card import self_check_images
from app.detection.runtimes import make_runtime
from app.detection.upload_scorer import MappedUploads

Images = NDArray[np.uint8]
Floats = NDArray[np.float32]

_SELF_CHECK_RTOL = 1e-3  # devices sum in different orders; a wrong file or kernel differs by far more


class SelfCheckError(BundleError):
    """A bundle does not reproduce its card's scores on this device."""


class Detections(NamedTuple):
    """A detector's results for N images, in their order."""

    scores: Floats  # [N], higher = more anomalous
    p_values: NDArray[np.float64]  # [N], in (0, 1]
    reconstruction_errors: Floats  # [N], mean squared residual in [-1, 1] units
    embeddings: Floats  # [N, latent_dim], unbounded
    calibration_sizes: NDArray[np.intp]  # [N], normal images that each p-value was counted from
    calibrated: NDArray[np.bool_]  # [N], False: an upload of a kind that was not calibrated
    reconstructions: Floats | None = None  # [N, S, S] in [0, 1], where asked for
    error_maps: Floats | None = None  # [N, S, S], not negative, 1 = a usual residual, where asked for

    def part(self, start: int, stop: int) -> "Detections":
        """The detections of the images from `start` to before `stop`, without copying."""
        reconstructions, error_maps = self.reconstructions, self.error_maps
        return Detections(  # written out: half the time of a loop over the fields
            self.scores[start:stop],
            self.p_values[start:stop],
            self.reconstruction_errors[start:stop],
            self.embeddings[start:stop],
            self.calibration_sizes[start:stop],
            self.calibrated[start:stop],
            None if reconstructions is None else reconstructions[start:stop],
            None if error_maps is None else error_maps[start:stop],
        )

    @classmethod
    def join(cls, parts: Sequence["Detections"]) -> "Detections":
        """Several detections as one, in order."""
        if len(parts) == 1:
            return parts[0]
        return cls._make(None if column[0] is None else np.concatenate(column) for column in zip(*parts, strict=True))


class Detector:
    """A bundle loaded on one device."""

    def __init__(self, bundle: Bundle, device: str = "auto", runtime: str = "auto", threads: int = 1) -> None:
        """Load the bundle's network.

        `device` is auto, cpu, cuda, cuda:N or mps; `runtime` is auto, onnx or torch; `threads` is the number of CPU threads
        of one forward pass.

        Raises:
            DeviceError: the device or runtime is not available.
            BundleError: the bundle's files cannot be used.
        """
        self._runtime = make_runtime(bundle, device, runtime, threads)
        self.bundle = replace(bundle, files={})  # the runtime holds the weights now
        self.device, self.runtime = self._runtime.device, self._runtime.name
        self.chunk_size = self._runtime.chunk_size
        self.image_size = bundle.card.architecture.image_size
        self.latent_dim = bundle.card.architecture.latent_dim

    def detect(
        self, images: Images, features: Floats | None = None, *, reconstructions: bool = False, error_maps: bool = False
    ) -> Detections:
        """Score uint8 images [N, S, S]. Reconstructions and error maps are left out unless asked for.

        `features` [N, K] are the upload features of prepared images; rows of NaN mark unprepared images.
        """
        out = self._runtime.run(images, with_maps=reconstructions or error_maps)
        mapped = self._map_uploads(out.score, images, features)
        p_values = self.bundle.calibration.p_values(mapped.scores)
        if features is not None:
            p_values = np.maximum(p_values, 1 / (mapped.sizes + 1))  # the smallest of the upload's own group
        return Detections(
            scores=mapped.scores,
            p_values=p_values,
            reconstruction_errors=out.reconstruction_error,
            embeddings=out.embedding,
            calibration_sizes=mapped.sizes,
            calibrated=mapped.calibrated,
            reconstructions=out.reconstruction if reconstructions else None,
            error_maps=out.error_map if error_maps else None,
        )

    @property
    def is_lost(self) -> bool:
        """Whether the device has failed, so that this process cannot use it any more."""
        return self._runtime.is_lost

    def decode(self, embeddings: Floats) -> Floats:
        """Embeddings [N, latent_dim] -> images [N, S, S] in [0, 1]."""
        return self._runtime.decode(embeddings)

    def self_check(self) -> None:
        """Score the card's own images again. Raises SelfCheckError: the scores differ, or an upload cannot be scored."""
        card = self.bundle.card
        expected = np.array(card.self_check.scores, np.float32)
        images = self_check_images(card.self_check.seed, self.image_size)
        scores = self.detect(images).scores
        finite = scores.shape == expected.shape and np.isfinite(scores).all()  # np.allclose takes infinities for equal
        if not finite or not np.allclose(scores, expected, rtol=_SELF_CHECK_RTOL, atol=0):
            raise SelfCheckError(
                f"{self.bundle.label} scores its self-check images differently on {self.device} than its card says; "
                "it is not served."
            )
        try:
            self.detect(images[:1], np.zeros((1, len(FEATURE_NAMES)), np.float32))
        except (ValueError, IndexError) as error:
            raise SelfCheckError(f"{self.bundle.label} cannot score uploads: {error}") from error

    def _map_uploads(self, scores: Floats, images: Images, features: Floats | None) -> MappedUploads:
        """Scores [N] of unprepared images stay; those of prepared images are combined with their features [N, K]."""
        uploads, is_for_uploads = self.bundle.uploads, self.bundle.card.uploads == "own"
        sizes = np.full(len(scores), self.bundle.calibration.n)
        calibrated = np.full(len(scores), not is_for_uploads)  # the other versions are calibrated on unprepared images
        if features is None:
            return MappedUploads(scores, sizes, calibrated)
        prepared = ~np.isnan(features[:, 0])
        calibrated[prepared] = is_for_uploads
        if uploads is None:
            return MappedUploads(scores, sizes, calibrated)
        scores = scores.copy()
        scores[prepared], sizes[prepared], calibrated[prepared] = uploads.score(
            scores[prepared], images[prepared], features[prepared]
        )
        return MappedUploads(scores, sizes, calibrated)


def with_calibration(warnings: Sequence[str], steps: Sequence[str], preparation: str, calibrated: bool) -> tuple[str, ...]:
    """Add the warning `uncalibrated` to the warnings of an image if the detector was not calibrated on such images.

    `steps` are what was done to the image, `preparation` is that of the detector's card, `calibrated` is what the detector
    says of the image. It cannot see that an image was only resized (`none`) although its card asks for `digit`.
    """
    only_resized = preparation != "none" and "resized" in steps
    return tuple(warnings) if calibrated and not only_resized else (*warnings, UNCALIBRATED)


def stack_features(features: Sequence[Floats | None]) -> Floats | None:
    """Features [K] of each image, None for unprepared ones -> [N, K] with NaN for those, or None where all are unprepared."""
    known = next((row for row in features if row is not None), None)
    if known is None:
        return None
    missing = np.full_like(known, np.nan)
    return np.stack([missing if row is None else row for row in features])
