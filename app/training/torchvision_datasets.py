"""The MNIST family, read and downloaded by torchvision. The only file that imports torchvision."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAMED_SETS = ("mnist", "fashion-mnist", "kmnist", "emnist-digits")

Part = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images [N, 28, 28], labels [N]


def read_named_set(name: str, data_dir: Path) -> tuple[Part, Part]:
    """Read the training and the test part of a set of NAMED_SETS. It is downloaded to `data_dir` if it is not there.

    Raises:
        RuntimeError, OSError, ValueError: the files are missing and cannot be downloaded, or are damaged.
    """
    from torchvision import datasets

    classes: dict[str, tuple[Any, dict[str, str]]] = {
        "mnist": (datasets.MNIST, {}),
        "fashion-mnist": (datasets.FashionMNIST, {}),
        "kmnist": (datasets.KMNIST, {}),
        "emnist-digits": (datasets.EMNIST, {"split": "digits"}),
    }
    dataset_class, options = classes[name]
    folder = data_dir / dataset_class.__name__
    new_folders = [path for path in (folder / "raw", folder, data_dir) if not path.exists()]
    try:
        train, test = (_read(dataset_class, data_dir, train=part, **options) for part in (True, False))
        return train, test
    finally:
        _remove_empty(new_folders)


def _read(dataset_class: Any, data_dir: Path, *, train: bool, **options: str) -> Part:  # noqa: ANN401 - of torchvision
    with contextlib.redirect_stdout(sys.stderr):  # torchvision reports its downloads on stdout, which may be piped
        dataset = dataset_class(str(data_dir), train=train, download=True, **options)
    images, labels = dataset.data.numpy(), dataset.targets.numpy().astype(np.int64)
    if dataset_class.__name__ == "EMNIST":  # its files hold every image transposed
        images = np.ascontiguousarray(images.transpose(0, 2, 1))
    return images, labels


def _remove_empty(folders: list[Path]) -> None:
    """Remove the folders that are empty, which a failed download leaves."""
    for path in folders:
        with contextlib.suppress(OSError):
            path.rmdir()
