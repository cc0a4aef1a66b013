"""The store: bundles to folders and back. Publishing is atomic; loading trusts nothing it has not checked.

model_store/mnist/1/
  autoencoder.pth    the network's state_dict
  scorer.npz         the scorer's arrays, and `calibration`: the sorted calibration scores
  card.json          what it is, with a sha256 of every other file
  report/            pictures and arrays for people
"""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from app.detection.bundle import Bundle, Card
from app.detection.conformal import Calibration
from app.detection.upload_scorer import QuantileMap, UploadScorer
from app.network.autoencoder import Autoencoder, ModelConfig
from app.network.scoring import load_scorer

WEIGHTS, SCORER, CARD, REPORT = "autoencoder.pth", "scorer.npz", "card.json", "report"
_DIGEST = "card_sha256"  # of the card without this entry, so that an altered card is noticed too


class StoreError(RuntimeError):
    """A version is missing, incomplete, altered or unsafe; the message says which file and what to do."""


def versions(root: Path, name: str) -> list[int]:
    """The published versions of `name`, ascending. Unfinished and foreign folders do not count."""
    folder = root / name
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if re.fullmatch("[1-9][0-9]*", entry.name) and entry.is_dir())


def names(root: Path) -> list[str]:
    """The detectors in the store that have at least one version, in alphabetical order."""
    return sorted(entry.name for entry in root.iterdir() if versions(root, entry.name)) if root.is_dir() else []


def find(root: Path, name: str, version: int | None = None) -> Path:
    """The folder of this version of `name`, of the highest where none is given. Raises StoreError where there is none."""
    found = versions(root, name)
    if not found:
        raise StoreError(f"There is no detector named {name!r} in {root}; train one with `oddigit train`.")
    if version is not None and version not in found:
        raise StoreError(f"There is no version {version} of {name!r} in {root}; there is {', '.join(map(str, found))}.")
    return root / name / str(version or found[-1])


def publish(bundle: Bundle, root: Path, write_report: Callable[[Path], None] = lambda folder: None) -> Path:
    """Write `bundle` as the next version of its name and return the folder. The card's version and files are filled in.

    All is written to a hidden folder beside the versions and renamed when it is complete and on disk, so a kill at any
    moment leaves the old state or the new one. Of two publishers at once, each gets a version of its own.
    """
    home = root / bundle.card.name
    home.mkdir(parents=True, exist_ok=True)
    _sweep(home)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=home))
    try:
        draft.chmod(0o755)  # mkdtemp's 0700 would lock out a server that runs as another user
        _write_arrays(bundle, draft)
        (draft / REPORT).mkdir()
        write_report(draft / REPORT)
        return _claim_version(bundle, draft, home)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def load(folder: Path) -> Bundle:
    """Read and verify one version.

    Raises:
        StoreError: a file is missing, truncated, altered, pickled code, or does not belong to the others.
    """
    card = load_card(folder)
    contents = {name: _verified(folder, name, digest) for name, digest in card.files.items()}
    for required in (WEIGHTS, SCORER):
        if required not in contents:
            raise StoreError(f"{folder / CARD} does not list {required}; publish the version again.")
    config = _config(card, folder)
    model = load_weights(io.BytesIO(contents[WEIGHTS]), config, str(folder / WEIGHTS))
    arrays = _load_arrays(contents[SCORER], folder / SCORER)
    try:
        calibration = Calibration(arrays.pop("calibration"))
        threshold = calibration.threshold(card.alpha)
        uploads = _load_uploads(arrays, calibration)
        bundle = Bundle(model, load_scorer(card.scorer, arrays), calibration, card, uploads, folder)
    except (KeyError, ValueError, TypeError) as error:
        raise StoreError(f"{folder / SCORER} does not belong to its card: {error}") from error
    if threshold != card.threshold:
        raise StoreError(f"{folder / CARD} states threshold {card.threshold}, but its calibration gives {threshold}.")
    return bundle


def load_card(folder: Path) -> Card:
    """Read and verify a version's card alone. Raises StoreError."""
    path = folder / CARD
    try:
        content = json.loads(path.read_bytes())
        digest = content.pop(_DIGEST, "none")
        if digest != _card_digest(content):
            raise StoreError(f"{path} was altered after it was published; restore it or remove the version.")
        card = Card.model_validate(content)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing; {folder} is not a published version.") from None
    except (ValueError, AttributeError, TypeError, OSError, RecursionError) as error:
        raise StoreError(f"{path} is not a card of this program: {_first_line(error)}") from error
    if str(card.version) != folder.name:
        raise StoreError(f"{path} says version {card.version}, but its folder is named {folder.name}.")
    if card.name != folder.parent.name:
        raise StoreError(f"{path} says it is {card.name!r}, but its folder lies in {folder.parent.name!r}.")
    return card


def load_weights(source: Path | io.BytesIO, config: ModelConfig, label: str) -> Autoencoder:
    """A state_dict file -> the network. Refuses pickled code: only tensors are read.

    Raises:
        StoreError: the file is missing, unreadable, holds anything but tensors, or tensors of another architecture.
    """
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
        model = Autoencoder(config)
        model.load_state_dict(state)
    except FileNotFoundError:
        raise StoreError(f"{label} is missing.") from None
    except Exception as error:  # torch.load raises whatever its unpickler meets
        if "weights_only" in str(error):  # torch goes on to advise to unpickle anything
            raise StoreError(f"{label} is not a file of tensors alone; save a state_dict with torch.save.") from error
        raise StoreError(f"{label} does not hold the weights of {config}: {_first_line(error)}") from error
    if not all(bool(torch.isfinite(weight).all()) for weight in model.parameters()):
        raise StoreError(f"{label} holds weights that are not finite.")
    return model


def _sweep(home: Path) -> None:
    """Remove what killed publishers left; a draft of the last hour may still be written."""
    for draft in home.glob(".draft-*"):
        with suppress(FileNotFoundError):  # just published under its number
            if time.time() - draft.stat().st_mtime > 3600:
                shutil.rmtree(draft, ignore_errors=True)


def _write_arrays(bundle: Bundle, draft: Path) -> None:
    torch.save({name: weight.cpu() for name, weight in bundle.model.state_dict().items()}, draft / WEIGHTS)
    arrays: dict[str, NDArray[Any]] = {**bundle.scorer.arrays(), "calibration": bundle.calibration.scores}
    if bundle.uploads is not None:
        arrays |= {**bundle.uploads.features.arrays(), "upload_calibration": bundle.uploads.combined}
    with (draft / SCORER).open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _claim_version(bundle: Bundle, draft: Path, home: Path) -> Path:
    """Complete the card for the next free version, put all on disk, and rename; again where another was faster."""
    files = {str(path.relative_to(draft)): _sha256(path.read_bytes()) for path in sorted(draft.rglob("*")) if path.is_file()}
    while True:
        version = max(versions(home.parent, home.name), default=0) + 1
        card = bundle.card.model_copy(update={"version": version, "files": files})
        content = card.model_dump(mode="json")
        content[_DIGEST] = _card_digest(content)
        (draft / CARD).write_text(json.dumps(content, indent=2) + "\n")
        _sync(draft)
        try:
            draft.rename(home / str(version))
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                continue
            raise
        _sync_one(home)
        return home / str(version)


def _card_digest(content: dict[str, Any]) -> str:
    return _sha256(json.dumps(content, sort_keys=True).encode())


def _verified(folder: Path, name: str, digest: str) -> bytes:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise StoreError(f"{folder / CARD} lists {name}, which lies outside the version.")
    try:
        content = path.read_bytes()
    except OSError:
        raise StoreError(f"{path} is missing or unreadable; restore it or remove the version.") from None
    if _sha256(content) != digest:
        raise StoreError(
            f"{path} is truncated or altered: its checksum differs from the card's. Restore it or remove the version."
        )
    return content


def _config(card: Card, folder: Path) -> ModelConfig:
    try:
        return card.architecture.config
    except ValueError as error:
        raise StoreError(f"{folder / CARD} describes no network: {error}") from error


def _load_arrays(content: bytes, path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {name: np.asarray(archive[name]) for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path} does not hold plain arrays: {_first_line(error)}") from error


def _load_uploads(arrays: dict[str, NDArray[Any]], calibration: Calibration) -> QuantileMap | None:
    if "upload_calibration" not in arrays:
        return None
    combined = arrays.pop("upload_calibration")
    return QuantileMap.calibrated(UploadScorer.from_arrays(arrays), combined, calibration)


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
