"""What the tests of the commands share: the command line in this process, and a store with one trained version."""

import sys

import pytest
from live import run
from typer.testing import CliRunner

from app.cli.commands import cli


@pytest.fixture(scope="session")
def oddigit():
    """The command line: arguments in; exit code, standard output and standard error out."""

    def run(*arguments, **options):
        return CliRunner().invoke(cli, [str(argument) for argument in arguments], **options)

    return run


@pytest.fixture(scope="session")
def trained(oddigit, strokes_file, tmp_path_factory):
    """A store with one version, trained by the command."""
    root = tmp_path_factory.mktemp("trained")
    options = ["--data", strokes_file, "--epochs", 2, "--alpha", 0.05, "--device", "cpu", "--scorer", "mse"]
    result = oddigit("train", *options, "--store", root)
    assert result.exit_code == 0, result.output
    assert "epoch 2/2" in result.output and "Published strokes/1" in result.output
    return root


@pytest.fixture(scope="session")
def oddigit_on_full_disk():
    """The command line in a process that can write at most 4 or 8 KiB into a file, as the shell counts blocks."""

    def run_limited(*arguments):
        limited = ("sh", "-c", 'ulimit -f 8; exec "$@"', "sh", sys.executable, "-m", "app", *map(str, arguments))
        return run(*limited, PYTHONDONTWRITEBYTECODE="1")

    return run_limited
