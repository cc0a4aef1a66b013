"""The command `export`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from app.cli import options


class ExportError(RuntimeError):
    """Nothing can be exported; the message says why and what to do."""


def export(
    to: Annotated[Path | None, typer.Option(help="Copy detector.onnx to this file.")] = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="Publish a version without ONNX models again, with them (needs torch).")
    ] = False,
    model: options.Model = "mnist",
    version: options.Version = None,
    store: options.Store = options.DEFAULT_STORE,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Copy the detector as an ONNX model, after its checksum is verified; or add the ONNX models to an older version.

    The model takes uint8 images [N, 28, 28] and returns scores, reconstruction errors, embeddings, reconstructions and
    error maps. It runs in ONNX Runtime without this program.
    """
    if (to is None) != publish:
        raise typer.BadParameter("give one of --to FILE and --publish")
    from app.detection.store import find

    folder = find(store, model, version)
    if to is not None:
        _copy_onnx(folder, to, force)
    else:
        _publish_with_onnx(folder, store.own)


def _copy_onnx(folder: Path, to: Path, force: bool) -> None:
    from app.cli.addresses import write_file
    from app.detection.bundle import DETECTOR_ONNX
    from app.detection.store import load

    bundle = load(folder)
    content = bundle.files.get(DETECTOR_ONNX)
    if content is None:
        raise ExportError(
            f"{bundle.label} has no {DETECTOR_ONNX}, because an older release published it. Publish it again with "
            f"`oddigit export --model {bundle.card.name} --version {bundle.card.version} --publish`."
        )
    if os.path.lexists(to) and not force:  # a link to nothing too
        raise ExportError(f"{to} exists; name another file or add --force.")
    write_file(to, content)
    typer.echo(f"Wrote the detector {bundle.label} to {to} ({len(content):,} bytes).", err=True)  # `to` may be /dev/stdout


def _publish_with_onnx(folder: Path, root: Path) -> None:
    from app.training.optional import check_training_extra

    check_training_extra()
    from app.training.recalibrate import add_onnx

    published = add_onnx(folder, root)
    typer.echo(f"Published {published.parent.name}/{published.name} in {published}")
