"""The command line, `oddigit COMMAND`: one command for each file of this package."""

from importlib.metadata import version
from typing import Annotated

import typer

from app.cli.calibrate import calibrate
from app.cli.evaluate import evaluate
from app.cli.export import export
from app.cli.models import models
from app.cli.page import page
from app.cli.push import pull, push
from app.cli.score import score
from app.cli.serve import serve
from app.cli.train import train


def _print_version(asked: bool) -> None:
    if asked:
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


for command in (train, evaluate, calibrate, score, models, export, page, push, pull, serve):
    cli.command()(command)


def main() -> None:
    """Run the `oddigit` command."""
    cli()
