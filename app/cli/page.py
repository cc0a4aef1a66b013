"""The command `page`."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import options

if TYPE_CHECKING:
    from app.detection.bundle import Bundle

_RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
_HEAD = '  <meta charset="utf-8">\n'
_STATIC_HEAD = _HEAD + (
    """  <meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; """
    """style-src 'self'; img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'">\n"""
    """  <meta name="oddigit-static" content="true">\n"""
)
_SERVER_LINKS = ('      <a href="#monitor">Monitor</a>\n', '      <a href="docs">API</a>\n')


class PageError(RuntimeError):
    """The page cannot be written; the message says why and what to do."""


def page(
    to: Annotated[Path, typer.Option(help="The folder that the files are written to.")],
    runtime: Annotated[Path, typer.Option(help="Folder dist/ of the npm package onnxruntime-web.")] = Path(
        "node_modules/onnxruntime-web/dist"
    ),
    model: options.Model = "mnist",
    version: options.Version = None,
    store: options.Store = options.DEFAULT_STORE,
) -> None:
    """Write the demonstration page as static files for any web server: the detector runs in the browser.

    Grey images of 28x28 pixels get the scores that the server gives them. Drawings and other images are prepared more
    simply than by the server, and scored without its networks for uploads.
    """
    from app.detection.store import find, load

    missing = [name for name in _RUNTIME if not (runtime / name).is_file()]
    if missing:
        raise PageError(f"{runtime} has no {missing[0]}. Run `npm install onnxruntime-web`, or name its folder with --runtime.")
    folder = find(store, model, version)
    bundle = load(folder)
    if bundle.card.preprocess == "none":
        raise PageError(f"{bundle.label} is a detector of images that are no digits; the page prepares digits only.")
    _write_page(to)
    for name in _RUNTIME:
        shutil.copy(runtime / name, to / "runtime" / name)
    _write_detector(bundle, folder, to)
    size = sum(file.stat().st_size for file in to.rglob("*") if file.is_file())
    typer.echo(f"Wrote the page with {bundle.label} to {to} ({size:,} bytes).")


def _write_page(to: Path) -> None:
    source = Path(__file__).parents[1] / "serving" / "static"
    shutil.copytree(source / "page", to / "page", dirs_exist_ok=True)
    for name in ("answers", "runtime"):
        (to / name).mkdir(exist_ok=True)
    for name in ("page.css", "page.js"):
        shutil.copy(source / name, to / name)
    text = (source / "index.html").read_text().replace(_HEAD, _STATIC_HEAD)
    for link in _SERVER_LINKS:
        text = text.replace(link, "")
    (to / "index.html").write_text(text)


def _write_detector(bundle: "Bundle", folder: Path, to: Path) -> None:
    """Write the models and the answers of the endpoints that describe the detector."""
    from app.detection.bundle import DECODER_ONNX, DETECTOR_ONNX
    from app.detection.store import REPORT
    from app.serving.api.calibration_summary import summarise_calibration
    from app.serving.api.model_info import LATENT, latent_points, served_model
    from app.serving.api.responses import json_bytes
    from app.serving.schemas import ModelCard, ModelList

    card, answers = bundle.card, to / "answers"
    for name in (DETECTOR_ONNX, DECODER_ONNX):
        if name not in bundle.files:
            raise PageError(f"{bundle.label} has no {name}; publish it again with `oddigit export --publish`.")
        (to / name).write_bytes(bundle.files[name])
    served = served_model(card, [card.version], device="browser", runtime="onnx")
    contents: dict[str, object] = {
        "models": ModelList(default=card.name, memory_bytes=None, models=[served]),
        "model": ModelCard(**card.model_dump(), device="browser"),
        "calibration": summarise_calibration(bundle),
        "readyz": {"refused_versions": []},
    }
    if (folder / REPORT / LATENT).is_file():
        contents["latent"] = latent_points((folder / REPORT / LATENT).read_bytes())
    for name, content in contents.items():
        (answers / f"{name}.json").write_bytes(json_bytes(content))
    (answers / "scores.bin").write_bytes(bundle.calibration.scores.astype("<f4").tobytes())
    shutil.copytree(folder / REPORT, answers / REPORT, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.np[yz]"))
