"""Attacks on the server's folders: versions of the store that must not be served, and a full folder for metrics."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

SHIPPED = Path(__file__).parents[2] / "model_store" / "mnist"
GOOD_VERSION = 1000

Step = Callable[[int], None]  # called once a second, with the second


class NotPlayedError(Exception):
    """The machine does not allow an attack; the message says why."""


def publish(root: Path, version: int, damage: Callable[[Path], dict[str, object]]) -> None:
    """Publish a copy of the shipped version after `damage`, which returns fields of the card, with a card true to its files."""
    draft = shutil.copytree(next(SHIPPED.iterdir()), root / "mnist" / ".new")
    shutil.rmtree(draft / "report", ignore_errors=True)
    card = json.loads((draft / "card.json").read_text())
    card.pop("card_sha256")
    card |= {"version": version} | damage(draft)
    named = {name: draft / name for name in card["files"] if not name.startswith("report/")}
    card["files"] = {name: _digest(path) for name, path in named.items()}
    card["card_sha256"] = hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()
    if (draft / "card.json").is_file():
        (draft / "card.json").write_text(json.dumps(card))
    draft.rename(root / "mnist" / str(version))


@contextmanager
def hostile_store(root: Path) -> Iterator[Step]:
    """A store at `root`; each second a version that must not be served is published in it, and at the end a good one."""
    (root / "mnist").mkdir(parents=True)
    publish(root, 2, lambda folder: {})

    def step(second: int) -> None:
        publish(root, 10 + second, DAMAGES[second % len(DAMAGES)])

    yield step


@contextmanager
def full_folder(folder: Path) -> Iterator[Step]:
    """A file system of 6 MiB at `folder`, filled after two seconds. Raises NotPlayedError without the right to mount one."""
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotPlayedError("it needs the right to mount a file system") from error

    def step(second: int) -> None:
        if second == 2:
            with suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

    try:
        yield step
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def serves_good_version(root: Path, port: int) -> bool:
    """Publish a good version and return whether it serves within 10 s."""
    publish(root, GOOD_VERSION, lambda folder: {})
    for _ in range(100):
        time.sleep(0.1)
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            if json.load(answer)["model"]["version"] == GOOD_VERSION:
                return True
    return False


def _fifo(name: str) -> Callable[[Path], dict[str, object]]:
    def damage(folder: Path) -> dict[str, object]:
        (folder / name).unlink()
        os.mkfifo(folder / name)
        return {}

    return damage


def _device(folder: Path) -> dict[str, object]:
    (folder / "scorer.npz").unlink()
    (folder / "scorer.npz").symlink_to("/dev/zero")
    return {}


def _arrays(name: str, value: float) -> Callable[[Path], dict[str, object]]:
    """Overwrite the array `name` (each array where it is "") of scorer.npz with `value`."""

    def damage(folder: Path) -> dict[str, object]:
        with np.load(folder / "scorer.npz") as archive:
            arrays = dict(archive)
        for each in arrays:
            if name in ("", each) and arrays[each].dtype.kind == "f":
                arrays[each] = np.full_like(arrays[each], value, dtype=np.float64)
        np.savez(folder / "scorer.npz", **arrays)
        return {}

    return damage


def _wide(folder: Path) -> dict[str, object]:
    architecture = {"image_size": 28, "hidden": [700_000, 64, 12], "latent_dim": 2, "parameters": 222_384}
    return {"architecture": architecture}


def _bomb(folder: Path) -> dict[str, object]:
    """Replace scorer.npz by 1 MiB that unpack to 1 GiB."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**27,)})
    with (
        zipfile.ZipFile(folder / "scorer.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("calibration.npy", "w", force_zip64=True) as entry,
    ):
        entry.write(header.getvalue())
        for _ in range(1024):
            entry.write(bytes(2**20))
    return {}


def _no_graph(folder: Path) -> dict[str, object]:
    (folder / "scores.onnx").write_bytes(b"\x08\x0a" + os.urandom(4096))
    return {}


DAMAGES = (
    _arrays("calibration", float("nan")),
    _arrays("", 1e308),
    _wide,
    _bomb,
    _device,
    _no_graph,
    _fifo("scorer.npz"),
    _fifo("card.json"),
)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else "0" * 64
