"""Data sets: a name, a folder or an array file in, uint8 images out, split by a seed.

Images are uint8 [N, 28, 28], 0 = background, 255 = ink. Files of a folder are decoded and prepared as the server does with
uploads, as digits or not at all; those that cannot be read are skipped and logged. A set that cannot be used is a `DataError`.
"""

import contextlib
import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.detection.detector import stack_features
from app.detection.imaging.centring import centre_images
from app.detection.imaging.decode import Preprocess, decode_image
from app.detection.imaging.errors import ImageError
from app.detection.imaging.preprocess import PreprocessedImage, preprocess_digit
from app.detection.model_card import Preparation
from app.training.preparation import choose_preparation, sample
from app.training.progress import SILENT, Progress
from app.training.torchvision_datasets import NAMED_SETS, read_named_set

logger = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]

_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class DataError(ValueError):
    """A data set is missing, empty, damaged or of another shape; the message names the file and says what to do."""


@dataclass(frozen=True)
class LabelledImages:
    """Images and, where they are known, their classes."""

    images: Pixels  # [N, S, S]
    labels: Labels | None = None  # [N]
    features: NDArray[np.float32] | None = None  # upload features [N, K]; None where the images needed no preparation

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: NDArray[np.intp]) -> "LabelledImages":
        """The images at `index`, in its order."""
        labels = None if self.labels is None else self.labels[index]
        features = None if self.features is None else self.features[index]
        return LabelledImages(self.images[index], labels, features)


@dataclass(frozen=True)
class DataSet:
    """A data set as it is stored: its training part and its test part, if it has one."""

    name: str  # valid as the name of a detector
    train: LabelledImages
    test: LabelledImages | None = None
    preprocess: Preparation = "digit"
    stored_digest: str = ""  # of the images before they were shifted to the middle

    @cached_property
    def digest(self) -> str:
        """sha256 over all pixels as they are stored, whatever files they came from."""
        if self.stored_digest:
            return self.stored_digest
        found = hashlib.sha256(self.train.images.tobytes())
        if self.test is not None:
            found.update(self.test.images.tobytes())
        return found.hexdigest()

    @property
    def labels_digest(self) -> str | None:
        """sha256 over the labels of the training part, by which it is split; None without labels."""
        labels = self.train.labels
        return None if labels is None else hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()

    def is_described_by(self, data: Mapping[str, Any]) -> bool:
        """Whether the card's account of a data set, by `describe_data`, is of these images and labels."""
        labels = self.labels_digest
        return self.digest == data["sha256"] and bool(data.get("labels_sha256", labels) == labels)  # older cards have no labels

    @property
    def test_or_all(self) -> LabelledImages:
        """The images to evaluate on: the test part, or all images of a set that has none."""
        return self.test or self.train


def load_dataset(
    source: str, *, data_dir: Path, image_size: int = 28, preprocess: Preprocess = "digit", progress: Progress = SILENT
) -> DataSet:
    """Read the data set that `source` names: mnist, fashion-mnist, kmnist, emnist-digits, a folder, a .npy or a .npz.

    The named sets are read from `data_dir` (torchvision's layout) and downloaded to it if missing. A folder holds images, or
    one folder of images for each class. An .npy is uint8 [N, S, S]; an .npz holds such `images` and optionally `labels`.
    `preprocess`: with `digit`, files are prepared unless they are grey and of the network's size, and images off the middle are
    shifted there, as served ones are; with `none`, files are only resized; `auto` chooses by a sample of the images.

    Raises:
        DataError: there is no such set, or it cannot be used.
    """
    path = Path(source)
    if source not in NAMED_SETS and path.is_dir():
        return _read_folder(path, image_size, preprocess, progress)
    if source in NAMED_SETS:
        dataset = _load_named_set(source, data_dir)
    elif path.suffix in (".npy", ".npz") and path.is_file():
        dataset = DataSet(_slug(path), _read_arrays(path, image_size))
    else:
        raise _unknown_source(source)
    prepared = (preprocess_digit(dataset.train.images[index]) for index in sample(len(dataset.train)))
    preparation = choose_preparation(preprocess, prepared, source)
    if preparation == "none":
        return replace(dataset, preprocess=preparation)
    train = replace(dataset.train, images=centre_images(dataset.train.images)[0])
    test = dataset.test and replace(dataset.test, images=centre_images(dataset.test.images)[0])
    return DataSet(dataset.name, train, test, preparation, dataset.digest)


def _unknown_source(source: str) -> DataError:
    """The error for a source that is neither a named set nor a folder, .npy or .npz, whether it exists or not."""
    if Path(source).exists():
        return DataError(f"{source} is neither a folder of images nor an .npy or .npz file.")
    return DataError(
        f"There is no data set {source!r}; give {', '.join(NAMED_SETS)}, or the path of a folder, an .npy or an .npz."
    )


def _load_named_set(name: str, data_dir: Path) -> DataSet:
    try:
        (images, labels), (test_images, test_labels) = read_named_set(name, data_dir)
    except Exception as error:  # torchvision raises any type of error for damaged files
        raise DataError(
            f"{name} is not in {data_dir.resolve()} and could not be downloaded; put its files there or name another "
            f"folder with --data-dir ({_first_line(error)})."
        ) from error
    return DataSet(name, LabelledImages(images, labels), LabelledImages(test_images, test_labels))


def _read_folder(folder: Path, size: int, preprocess: Preprocess, progress: Progress) -> DataSet:
    entries = _visible(folder)
    classes = [entry for entry in entries if entry.is_dir()]
    if classes and any(entry.is_file() and entry.suffix.lower() in _IMAGE_SUFFIXES for entry in entries):
        raise DataError(f"{folder} mixes images and folders; put images alone in it, or one folder for each class.")
    groups = [_visible(entry) for entry in classes]
    paths = [path for group in groups for path in group] if classes else entries
    preparation = choose_preparation(preprocess, _prepared_as_digits(paths), str(folder))
    images, features, read = _decode_all(paths, folder, size, preparation, progress)
    labels = np.repeat(_class_numbers(classes), [len(group) for group in groups])[read] if classes else None
    return DataSet(_slug(folder), LabelledImages(images, labels, features), preprocess=preparation)


def _prepared_as_digits(paths: Sequence[Path]) -> Iterator[PreprocessedImage]:
    """A sample of the files, without those that cannot be read."""
    for index in sample(len(paths)):
        with contextlib.suppress(ImageError, OSError):
            yield decode_image(paths[index].read_bytes(), preprocess="digit")


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _class_numbers(classes: list[Path]) -> Labels:
    """Labels of class folders: the number where all names are numbers, else the position in alphabetical order."""
    if all(re.fullmatch(r"\d{1,3}", entry.name) for entry in classes):
        return np.array([int(entry.name) for entry in classes])
    return np.arange(len(classes))


def _decode_all(
    paths: list[Path], folder: Path, size: int, preparation: Preparation, progress: Progress
) -> tuple[Pixels, NDArray[np.float32] | None, NDArray[np.intp]]:
    """Decode the files: images [N, size, size], features [N, K], and the positions [N] of the files that could be read.

    The others are skipped, and the log names each. Either all images or none must need preparation, because a threshold
    holds for one of the two kinds.
    """
    images: list[PreprocessedImage] = []
    read: list[int] = []
    skipped: list[str] = []
    advance = progress.begin("Reading images", len(paths))
    for index, path in enumerate(paths):
        advance(1)
        try:
            image = decode_image(path.read_bytes(), preprocess="none" if preparation == "none" else "auto", size=size)
        except (ImageError, OSError) as error:
            skipped.append(f"{path} ({_first_line(error)})")
            continue
        if images and (image.features is None) != (images[0].features is None):
            kept, prepared = (path, paths[read[0]]) if image.features is None else (paths[read[0]], path)
            raise DataError(
                f"{folder} mixes sizes: {kept.name} is a {size}x{size} image and is taken as it is, {prepared.name} is not "
                "and would be prepared first; put the two kinds in folders of their own."
            )
        images.append(image)
        read.append(index)
    if not images:
        named = f"; skipped: {', '.join(skipped[:5])}" if skipped else ""
        raise DataError(f"{folder} holds no images{named}. Put image files into it.")
    if skipped:
        logger.warning("%d of %d files are skipped: %s", len(skipped), len(paths), ", ".join(skipped))
    features = stack_features([image.features for image in images])
    return np.stack([image.image for image in images]), features, np.array(read)


def check_files(source: str) -> None:
    """Raise DataError, which names all of them, if the folder `source` holds files that are no readable images."""
    bad = []
    for path in Path(source).rglob("*") if Path(source).is_dir() else ():
        if path.is_dir() or any(part.startswith(".") for part in path.relative_to(source).parts):
            continue
        try:
            decode_image(path.read_bytes())
        except (ImageError, OSError) as error:
            bad.append(f"{path} ({_first_line(error)})")
    if bad:
        raise DataError(f"{len(bad)} files cannot be read as images: {', '.join(sorted(bad))}; repair or remove them.")


def _read_arrays(path: Path, size: int) -> LabelledImages:
    try:
        with path.open("rb") as file:  # not np.load(path), which leaves a damaged archive open
            return _unpack(path, size, np.load(file, allow_pickle=False))
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile raise any type of error for damaged files
        raise DataError(f"{path} cannot be read as plain arrays ({_first_line(error)}).") from error


def _unpack(path: Path, size: int, content: Any) -> LabelledImages:  # noqa: ANN401 - an array or an archive of arrays
    if isinstance(content, np.ndarray):
        return _checked(path, size, content, None)
    if not isinstance(content.get("images"), np.ndarray):
        raise DataError(f"{path} holds no array named 'images'; it holds {', '.join(content.files) or 'nothing'}.")
    return _checked(path, size, content["images"], content["labels"] if "labels" in content.files else None)


def _checked(path: Path, size: int, images: NDArray[np.generic], labels: NDArray[np.generic] | None) -> LabelledImages:
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (size, size):
        hint = "; for values from 0 to 1, np.rint(images * 255).astype(np.uint8)" if images.dtype.kind == "f" else ""
        raise DataError(f"{path} holds {images.dtype} {list(images.shape)}; images must be uint8 [N, {size}, {size}]{hint}.")
    if not len(images):
        raise DataError(f"{path} holds no images.")
    if labels is None:
        return LabelledImages(images.astype(np.uint8))
    if labels.shape != (len(images),) or labels.dtype.kind not in "iuUS":
        raise DataError(f"{path} holds labels {labels.dtype} {list(labels.shape)}; give one number or word an image.")
    if labels.dtype.kind in "US":
        labels = np.unique(labels, return_inverse=True)[1]  # words become their position in alphabetical order
    return LabelledImages(images.astype(np.uint8), labels.astype(np.int64))


def _slug(path: Path) -> str:
    """A valid detector name made of a file name: lower case, only a-z, 0-9, _ and -."""
    return re.sub(r"[^a-z0-9_-]+", "-", path.resolve().stem.lower()).strip("-_")[:64] or "images"


def _first_line(error: Exception) -> str:
    first, *others = (str(error) or type(error).__name__).splitlines()
    return (f"{first} {others[-1]}" if others and first.endswith(":") else first).rstrip(".")
