"""What the tests of the commands share: the command line in this process, and a store with one trained version."""

import pytest
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
