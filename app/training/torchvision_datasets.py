"""The MNIST family through torchvision: a name in, pixels and labels out. The only file that imports torchvision."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.training.optional import needs_training_extra

KNOWN = ("mnist", "fashion-mnist", "kmnist", "emnist-digits")

Part = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images [N, 28, 28], labels [N]


def read_known(name: str, data_dir: Path) -> tuple[Part, Part]:
    """The training and the test part of the set called `name`, one of KNOWN; downloaded to `data_dir` if it is not there.

    Raises:
        MissingExtra: torchvision is not installed.
        RuntimeError, OSError, ValueError: the files are missing and cannot be downloaded, or are damaged.
    """
    with needs_training_extra():
        from torchvision import datasets
    kinds: dict[str, tuple[Any, dict[str, str]]] = {
        "mnist": (datasets.MNIST, {}),
        "fashion-mnist": (datasets.FashionMNIST, {}),
        "kmnist": (datasets.KMNIST, {}),
        "emnist-digits": (datasets.EMNIST, {"split": "digits"}),
    }
    kind, options = kinds[name]
    home = data_dir / kind.__name__
    absent = [path for path in (home / "raw", home, data_dir) if not path.exists()]
    try:
        return _read(kind, options, data_dir, train=True), _read(kind, options, data_dir, train=False)
    finally:
        _remove_empty(absent)


def _read(kind: Any, options: dict[str, str], data_dir: Path, *, train: bool) -> Part:  # noqa: ANN401 - a torchvision class
    with contextlib.redirect_stdout(sys.stderr):  # torchvision reports its downloads on stdout, which may be piped
        dataset = kind(str(data_dir), train=train, download=True, **options)
    images, labels = dataset.data.numpy(), dataset.targets.numpy().astype(np.int64)
    if kind.__name__ == "EMNIST":  # its files hold every image transposed
        images = np.ascontiguousarray(images.transpose(0, 2, 1))
    return images, labels


def _remove_empty(folders: list[Path]) -> None:
    """Undo what a failed download leaves; folders with anything in them stay."""
    for path in folders:
        with contextlib.suppress(OSError):
            path.rmdir()
