"""One sentence for whoever trains or evaluates without the packages that serving does not need."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

_PACKAGES = ("torchvision", "matplotlib", "sklearn", "scipy")


class MissingExtra(ImportError):
    """A package of the `train` extra is not installed; the message holds the command that installs it."""

    def __init__(self, package: str | None) -> None:
        super().__init__(f'{package} is not installed; run: {sys.executable} -m pip install "oddigit[train]"')


def check_training_extra() -> None:
    """Raise MissingExtra where a package of the extra is missing, before anything has taken its time."""
    for package in _PACKAGES:
        if find_spec(package) is None:
            raise MissingExtra(package)


@contextmanager
def needs_training_extra() -> Iterator[None]:
    """Wrap an import of torchvision, matplotlib, scikit-learn or scipy.

    Raises:
        MissingExtra: the package is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise MissingExtra(error.name) from error
