"""The packages of the extra `train`, which serving does not need. Where one is missing, the user reads how to install it."""

import sys
from importlib.util import find_spec

PACKAGES = ("torch", "torchvision", "matplotlib", "sklearn", "scipy", "onnx", "onnxscript")


class MissingExtra(ImportError):
    """A package of the extra `train` is not installed; the message holds the command that installs it."""

    def __init__(self, package: str) -> None:
        super().__init__(f'{package} is not installed; run: {sys.executable} -m pip install "oddigit[train]"')


def check_training_extra() -> None:
    """Raise MissingExtra if a package of the extra is missing. Commands call this before any slow work."""
    for package in PACKAGES:
        if find_spec(package) is None:
            raise MissingExtra(package)
