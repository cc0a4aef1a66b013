"""One sentence for whoever trains or evaluates without the packages that serving does not need."""

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtra(ImportError):
    """A package of the `train` extra is not installed; the message holds the command that installs it."""


@contextmanager
def needs_training_extra() -> Iterator[None]:
    """Wrap an import of torchvision, matplotlib, scikit-learn or scipy.

    Raises:
        MissingExtra: the package is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise MissingExtra(f'{error.name} is not installed; run: pip install "oddigit[train]"') from error
