"""The command line, `oddigit COMMAND`: one command for each file of this package."""

import typer

from app.cli.calibrate import calibrate
from app.cli.evaluate import evaluate
from app.cli.export import export
from app.cli.models import models
from app.cli.push import pull, push
from app.cli.score import score
from app.cli.serve import serve
from app.cli.train import train

cli = typer.Typer(
    help="Tells digit images from everything else: train a detector, measure it, score files, serve it over HTTP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (train, evaluate, calibrate, score, models, export, push, pull, serve):
    cli.command()(command)


def main() -> None:
    """Run the `oddigit` command."""
    cli()
