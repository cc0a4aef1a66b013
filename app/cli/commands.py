"""The command line, `oddigit COMMAND`: one command for each file of this package."""

import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from app.cli.calibrate import calibrate
from app.cli.errors import errors_as_sentences
from app.cli.evaluate import evaluate
from app.cli.export import export
from app.cli.models import models
from app.cli.page import page
from app.cli.push import pull, push
from app.cli.score import score
from app.cli.serve import serve
from app.cli.train import train


def _print_version(asked: bool) -> None:
    if not asked:  # `serve` needs no standard output
        return
    with errors_as_sentences():
        typer.echo(f"oddigit {version('oddigit')}")
        raise typer.Exit


cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@cli.callback()
def root(
    show_version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Tells digit images from other images: train a detector, measure it, score files, serve it over HTTP."""


for command in (train, evaluate, calibrate, score, models, export, page, push, pull):
    cli.command()(errors_as_sentences()(command))
cli.command()(serve)  # reports its own errors, and prints nothing on standard output


def main() -> None:
    """Run the `oddigit` command."""
    if os.getpid() == 1:  # of a container, where SIGTERM has no effect without a handler; `serve` has its own
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    if sys.stderr is None:  # closed; libraries ask whether it is a terminal
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - until the end
    try:
        cli()
    except KeyboardInterrupt:  # before a command began, which would have said that it stops
        sys.exit(130)
