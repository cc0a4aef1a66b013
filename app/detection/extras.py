"""The extras of the installation. Where a package of one is missing, the user reads the command that installs it."""

import sys
from importlib.util import find_spec


class MissingPackage(ImportError):
    """A package is not installed; the message holds the command that installs it."""


def install_command(extra: str) -> str:
    """The command that installs `extra` for the interpreter that runs the program."""
    return f'{sys.executable} -m pip install "oddigit[{extra}]"'


def check_installed(extra: str, *packages: str) -> None:
    """Raise MissingPackage if one of these packages of `extra` is not installed. None is imported."""
    for package in packages:
        if find_spec(package) is None:
            raise MissingPackage(f"{package} is not installed; run: {install_command(extra)}")
