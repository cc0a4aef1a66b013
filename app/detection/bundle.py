"""A bundle: everything that a detector is made of. Importing and loading one needs no torch."""

import hashlib
import io
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from app.detection.conformal import Calibration, images_needed
from app.detection.model_card import Card
from app.detection.upload_scorer import UploadCalibration

WEIGHTS = "autoencoder.pth"  # the tutorial network's state_dict
SCORER = "scorer.npz"  # the fitted scorer's tensors and the calibration scores
DETECTOR_ONNX = "detector.onnx"  # the whole detector
SCORES_ONNX = "scores.onnx"  # the part of it that /score and /embed need
DECODER_ONNX = "decoder.onnx"  # the part of it that /decode needs
ONNX_FILES = (DETECTOR_ONNX, SCORES_ONNX, DECODER_ONNX)

MAX_VERSION_BYTES = 256 * 2**20  # of all files of a version together, and of the arrays of one file unpacked

Arrays = dict[str, NDArray[Any]]


class BundleError(RuntimeError):
    """A version cannot be used; the message says which file is the cause and what to do."""


@dataclass(frozen=True)
class Bundle:
    """The files of a trained detector, its calibration and its card."""

    card: Card
    calibration: Calibration
    uploads: UploadCalibration | None = None  # None: prepared uploads are scored as unprepared images are
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


_CALIBRATION_NAMES = ("calibration", "upload_calibration", "upload_groups")


def read_npz(content: bytes, label: str, max_bytes: int = MAX_VERSION_BYTES) -> Arrays:
    """The arrays of an .npz file, without pickles. Sizes are read from the headers before anything is unpacked.

    Raises:
        BundleError: the file is damaged, holds other things than arrays of numbers, or unpacks to more than `max_bytes`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if (unpacked := sum(entry.file_size for entry in entries)) > max_bytes:
                raise BundleError(f"{label} unpacks to {unpacked:,} bytes; at most {max_bytes:,} are loaded.")
            if len({entry.filename.removesuffix(".npy") for entry in entries}) < len(entries):
                raise ValueError("two arrays have the same name")
            return {entry.filename.removesuffix(".npy"): _read_npy(read_entry(archive, entry)) for entry in entries}
    except BundleError:
        raise
    except Exception as error:  # of several libraries; RuntimeError, RecursionError and MemoryError among them
        raise BundleError(f"{label} does not hold plain arrays: {first_line(error)}") from error


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """The content of an entry, whose data may unpack to more than the size that it states: no more than that is unpacked.

    Raises:
        ValueError: the entry is compressed with another method than Deflate; zipfile unpacks those without a limit.
        zipfile.BadZipFile: the entry is damaged, or has another size than it states.
    """
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("another compression than Deflate")
    with archive.open(entry) as file:
        return file.read(entry.file_size)


def _read_npy(data: bytes) -> NDArray[Any]:
    """The array of an .npy file. Raises ValueError if its data are not numbers or not as long as its header says.

    numpy's own reader allocates the array that the header declares before it looks at the data.
    """
    file = io.BytesIO(data)
    if npy.read_magic(file) != (1, 0):
        raise ValueError("the format of an array is not version 1.0")
    shape, fortran_order, dtype = npy.read_array_header_1_0(file)
    if dtype.kind not in "biuf":
        raise ValueError(f"an array of type {dtype} instead of numbers")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError("the header of an array declares another size than the array has")
    flat = np.frombuffer(data, dtype, offset=file.tell())
    return np.array(flat.reshape(shape, order="F" if fortran_order else "C"))


def write_npz(scorer: Mapping[str, NDArray[Any]], calibration: Calibration, uploads: UploadCalibration | None) -> bytes:
    """The content of a scorer.npz."""
    arrays: Arrays = {**scorer, "calibration": calibration.scores}
    if uploads is not None:
        arrays |= uploads.arrays()
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def read_calibration(
    content: bytes, label: str, alpha: float, max_bytes: int = MAX_VERSION_BYTES
) -> tuple[Calibration, UploadCalibration | None]:
    """The calibration and, where there is one, the upload scorer of the scorer.npz of a version with this `alpha`.

    Raises:
        BundleError: the file is damaged or too large, or an array is missing or not acceptable.
    """
    arrays = read_npz(content, label, max_bytes)
    try:
        for name, array in arrays.items():
            _check_range(name, array)
        calibration = Calibration(arrays["calibration"])
        if "upload_calibration" not in arrays:
            return calibration, None
        return calibration, UploadCalibration.from_arrays(arrays, calibration, images_needed(alpha))
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise BundleError(f"{label} does not belong to its card: {error}") from error


_LARGEST = 1e9  # the shipped scorer's largest number is 7,738; 784 squares of 1e9 fit into float32
_POSITIVE = re.compile(r"(^|_)(scale|widths|std|variance|spread|units)$")  # the scorer divides by these


def _check_range(name: str, array: NDArray[Any]) -> None:
    """Raise ValueError if the array holds numbers that are not finite, too large, or not positive where they must be."""
    if not (np.abs(array) <= _LARGEST).all():
        raise ValueError(f"the array {name} holds numbers that are not finite, or larger than {_LARGEST:g}")
    if _POSITIVE.search(name) and not (array > 0).all():
        raise ValueError(f"the array {name} holds numbers that are not positive")


MAX_WIDTH = 65_536  # of the image's side squared and of each layer


def check_architecture(card: Card, weights: bytes, label: str) -> None:
    """Compare the architecture with the size of the weights file, before anything is allocated for it.

    Raises:
        BundleError: a layer is too wide, or the file is too small for the weights of the architecture.
    """
    architecture = card.architecture
    widths = (architecture.image_size**2, *architecture.hidden, architecture.latent_dim)
    if max(widths) > MAX_WIDTH:
        raise BundleError(f"{label} states a layer of {max(widths):,} units; at most {MAX_WIDTH:,} are loaded.")
    needed = 4 * sum(2 * inputs * outputs for inputs, outputs in pairwise(widths))  # float32, encoder and decoder
    if needed > len(weights):
        raise BundleError(f"{label} states an architecture of {needed:,} bytes, but {WEIGHTS} has {len(weights):,}.")


def check_weights_file(content: bytes, label: str) -> None:
    """Raise BundleError if the file is not one of torch.save, or if an entry is compressed: torch unpacks it unchecked."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            plain = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    except (ValueError, OSError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
        raise BundleError(f"{label} is not a file of torch.save: {first_line(error)}") from error
    if not plain:
        raise BundleError(f"{label} is compressed; torch.save writes files without compression.")


def sha256(content: bytes) -> str:
    """Hexadecimal digest, as the card lists it."""
    return hashlib.sha256(content).hexdigest()


def first_line(error: Exception) -> str:
    """The first line of another library's message."""
    return (str(error) or type(error).__name__).splitlines()[0]
