"""A bundle: everything that a detector is made of. Importing and loading one needs no torch."""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.detection.conformal import Calibration
from app.detection.model_card import Card
from app.detection.upload_scorer import QuantileMap, UploadScorer

WEIGHTS = "autoencoder.pth"  # the tutorial network's state_dict
SCORER = "scorer.npz"  # the fitted scorer's tensors and the calibration scores
DETECTOR_ONNX = "detector.onnx"  # the whole detector
SCORES_ONNX = "scores.onnx"  # the part of it that /score and /embed need
DECODER_ONNX = "decoder.onnx"  # the part of it that /decode needs
ONNX_FILES = (DETECTOR_ONNX, SCORES_ONNX, DECODER_ONNX)

Arrays = dict[str, NDArray[Any]]


class BundleError(RuntimeError):
    """A version cannot be used; the message says which file is the cause and what to do."""


@dataclass(frozen=True)
class Bundle:
    """The files of a trained detector, its calibration and its card."""

    card: Card
    calibration: Calibration
    uploads: QuantileMap | None = None  # None: prepared uploads are scored as unprepared images are
    files: Mapping[str, bytes] = field(default_factory=dict)  # name -> content, without the report
    folder: Path | None = None  # the folder that it was loaded from

    @property
    def label(self) -> str:
        """`mnist/2`: name and version."""
        return f"{self.card.name}/{self.card.version}"

    def scorer_arrays(self) -> Arrays:
        """The fitted scorer's tensors by name, without the calibration. Raises BundleError."""
        arrays = read_npz(self.files[SCORER], SCORER)
        return {name: array for name, array in arrays.items() if name not in _CALIBRATION_NAMES and "evidence_" not in name}


_CALIBRATION_NAMES = ("calibration", "upload_calibration")


def read_npz(content: bytes, label: str) -> Arrays:
    """The arrays of an .npz file, without pickles. Raises BundleError."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {name: np.asarray(archive[name]) for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise BundleError(f"{label} does not hold plain arrays: {first_line(error)}") from error


def write_npz(scorer: Mapping[str, NDArray[Any]], calibration: Calibration, uploads: QuantileMap | None) -> bytes:
    """The content of a scorer.npz."""
    arrays: Arrays = {**scorer, "calibration": calibration.scores}
    if uploads is not None:
        arrays |= {**uploads.scorer.arrays(), "upload_calibration": uploads.upload_scores}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def read_calibration(content: bytes, label: str) -> tuple[Calibration, QuantileMap | None]:
    """The calibration and, where there is one, the upload scorer of a scorer.npz.

    Raises:
        BundleError: the file is damaged, or an array is missing or not acceptable.
    """
    arrays = read_npz(content, label)
    try:
        calibration = Calibration(arrays["calibration"])
        if "upload_calibration" not in arrays:
            return calibration, None
        scorer = UploadScorer.from_arrays(arrays)
        return calibration, QuantileMap.calibrated(scorer, arrays["upload_calibration"], calibration)
    except (KeyError, ValueError, TypeError) as error:
        raise BundleError(f"{label} does not belong to its card: {error}") from error


def sha256(content: bytes) -> str:
    """Hexadecimal digest, as the card lists it."""
    return hashlib.sha256(content).hexdigest()


def first_line(error: Exception) -> str:
    """The first line of another library's message."""
    return (str(error) or type(error).__name__).splitlines()[0]
