"""The store: bundles to folders and back. Publishing is atomic; loading verifies everything it reads.

model_store/mnist/4/
  autoencoder.pth    the network's state_dict
  scorer.npz         the fitted scorer's tensors, and `calibration`: the sorted calibration scores
  detector.onnx      the whole detector, with scores.onnx and decoder.onnx, parts of it
  card.json          the model card, with a sha256 of every other file
  report/            pictures and arrays for people
"""

import errno
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.detection.bundle import (
    MAX_VERSION_BYTES,
    SCORER,
    WEIGHTS,
    Bundle,
    BundleError,
    check_architecture,
    check_weights_file,
    first_line,
    read_calibration,
    sha256,
)
from app.detection.conformal import CalibrationError
from app.detection.drafts import DRAFT_PREFIX, remove_stale_drafts
from app.detection.model_card import Card
from app.detection.store_path import SHIPPED_WORD, Stores

CARD, REPORT = "card.json", "report"
_NAME = r"[a-z0-9][a-z0-9_-]*"  # of a detector
_MAX_CARD_BYTES = 4 * 2**20
_READ_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)  # without it, opening a FIFO waits for a writer
_DIGEST = "card_sha256"  # of the card without this entry: detects an altered card


class StoreError(BundleError):
    """A version is missing, incomplete, altered or unsafe; the message says which file and what to do."""


def folders(root: Path | Stores, name: str) -> list[Path]:
    """The folders of all versions of `name`, store by store."""
    return [each / name / str(version) for each in _roots(root) for version in _versions(each, name)]


def by_preference(root: Path | Stores, name: str) -> list[Path]:
    """The folders of all versions of `name`, store by store, the highest version of each store first."""
    return [each / name / str(version) for each in _roots(root) for version in reversed(_versions(each, name))]


def _roots(root: Path | Stores) -> tuple[Path, ...]:
    return root.roots if isinstance(root, Stores) else (root,)


def _versions(root: Path, name: str) -> list[int]:
    """The versions of a detector in a store, ascending. Unfinished and foreign folders do not count. Raises StoreError."""
    entries = (entry for entry in _list(root / name, root) if re.fullmatch("[1-9][0-9]*", entry.name))
    try:
        return sorted(int(entry.name) for entry in entries if entry.is_dir())
    except PermissionError as error:  # the folder may be listed, but not searched
        raise StoreError(f"{root / name} cannot be read: {error.strerror}.") from None


def _list(folder: Path, *above: Path) -> list[Path]:
    """The entries of a folder, none if there is no such folder. `above`: the folders that it lies in, up to the store.

    Raises:
        StoreError: the folder, or one of `above`, exists and cannot be read; no other store must take its place unnoticed.
    """
    try:
        return list(folder.iterdir())
    except (NotADirectoryError, FileNotFoundError):
        return []
    except PermissionError as error:
        for each in (folder, *above):
            with suppress(OSError):  # a folder outside of the store cannot be searched: nobody knows whether there is a store
                each.stat()
                raise StoreError(f"{each} cannot be read: {error.strerror}.") from None
        return []


def names(root: Path | Stores) -> list[str]:
    """The detectors in the store, or in any of the stores, that have a version or cannot be read, in alphabetical order.

    Raises:
        StoreError: a store cannot be read.
    """
    entries = {entry.name for each in _roots(root) for entry in _list(each)}
    # Others are no detectors, as lost+found, where the store is a whole disk.
    return sorted(name for name in entries if re.fullmatch(_NAME, name) and _may_have_versions(root, name))


def _may_have_versions(root: Path | Stores, name: str) -> bool:
    try:
        return bool(folders(root, name))
    except StoreError:  # which the caller gets again when it looks for the versions
        return True


def unknown_name(root: Path | Stores, name: str) -> StoreError:
    """The error for a name without versions, with the names that there are."""
    known = ", ".join(names(root))
    others = f"; there is {known}" if known else f"; train one with `oddigit train`, or add `:{SHIPPED_WORD}` to ODDIGIT_STORE"
    return StoreError(f"There is no detector named {name!r} in {root}{others}.")


def find(root: Path | Stores, name: str, version: int | None = None) -> Path:
    """The folder of this version of `name`; without one, of the highest in the first store that has the name.

    Raises:
        StoreError: there is none; the message lists those that there are.
    """
    found = by_preference(root, name)
    if not found:
        raise unknown_name(root, name)
    for folder in found:
        if version is None or folder.name == str(version):
            return folder
    known = ", ".join(folder.name for folder in folders(root, name))
    raise StoreError(f"There is no version {version} of {name!r} in {root}; there is {known}.")


def publish(bundle: Bundle, root: Path, write_report: Callable[[Path], None] = lambda folder: None) -> Path:
    """Write `bundle` as the next version of its name and return the folder. The card's version and files are filled in.

    All is written to a hidden folder beside the versions and renamed when it is complete and on disk, so a kill at any
    moment leaves the old state or the new one. Of two publishers at once, each gets a version of its own.
    """
    home = root / bundle.card.name
    home.mkdir(parents=True, exist_ok=True)
    remove_stale_drafts(home)
    draft = Path(tempfile.mkdtemp(prefix=DRAFT_PREFIX, dir=home))
    try:
        draft.chmod(0o755)  # mkdtemp's 0700 would lock out a server that runs as another user
        for name, content in bundle.files.items():
            (draft / name).write_bytes(content)
        (draft / REPORT).mkdir()
        write_report(draft / REPORT)
        return _claim_version(bundle, draft, home)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def load(folder: Path, max_bytes: int = MAX_VERSION_BYTES) -> Bundle:
    """Read and verify one version of at most `max_bytes`; imports no torch.

    Raises:
        StoreError: a file is missing, truncated, altered, too large, not a regular file, or does not belong to the others.
    """
    card = load_card(folder)
    contents: dict[str, bytes] = {}
    remaining = max_bytes
    for name, digest in card.files.items():
        contents[name] = _read_verified(folder, name, digest, remaining)
        remaining -= len(contents[name])
    for required in (WEIGHTS, SCORER):
        if required not in contents:
            raise StoreError(f"{folder / CARD} does not list {required}; publish the version again.")
    files = {name: content for name, content in contents.items() if not name.startswith(f"{REPORT}/")}
    try:
        check_architecture(card, contents[WEIGHTS], str(folder / CARD))
        check_weights_file(contents[WEIGHTS], str(folder / WEIGHTS))
        calibration, uploads = read_calibration(contents[SCORER], str(folder / SCORER), card.alpha, max_bytes)
        threshold = calibration.threshold(card.alpha)
    except (BundleError, CalibrationError) as error:
        raise StoreError(str(error)) from error
    if threshold != card.threshold:
        raise StoreError(f"{folder / CARD} states threshold {card.threshold}, but its calibration gives {threshold}.")
    return Bundle(card, calibration, uploads, files, folder)


def load_card(folder: Path) -> Card:
    """Read and verify a version's card alone. Raises StoreError."""
    path = folder / CARD
    try:
        content = json.loads(_read_regular(folder, CARD, _MAX_CARD_BYTES))
        digest = content.pop(_DIGEST, "none")
        if digest != _card_digest(content):
            raise StoreError(f"{path} was altered after it was published; restore it or remove the version.")
        card = Card.model_validate(content)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing; {folder} is not a published version.") from None
    except (ValueError, AttributeError, TypeError, OSError, RecursionError) as error:
        raise StoreError(f"{path} is not a card of this program: {first_line(error)}") from error
    if str(card.version) != folder.name:
        raise StoreError(f"{path} says version {card.version}, but its folder is named {folder.name}.")
    if card.name != folder.parent.name:
        raise StoreError(f"{path} says it is {card.name!r}, but its folder lies in {folder.parent.name!r}.")
    return card


def _claim_version(bundle: Bundle, draft: Path, home: Path) -> Path:
    """Complete the card for the next free version, put all on disk, and rename; again where another was faster."""
    files = {str(path.relative_to(draft)): sha256(path.read_bytes()) for path in sorted(draft.rglob("*")) if path.is_file()}
    while True:
        version = max(_versions(home.parent, home.name), default=0) + 1
        card = bundle.card.model_copy(update={"version": version, "files": files})
        content = card.model_dump(mode="json")
        content[_DIGEST] = _card_digest(content)
        (draft / CARD).write_text(json.dumps(content, indent=2) + "\n")
        sync_folder(draft)
        try:
            draft.rename(home / str(version))
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                continue
            raise
        _sync_one(home)
        return home / str(version)


def _card_digest(content: dict[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode())


def _read_verified(folder: Path, name: str, digest: str, max_bytes: int) -> bytes:
    path = folder / name
    try:
        content = _read_regular(folder, name, max_bytes)
    except OSError:
        raise StoreError(f"{path} is missing or unreadable; restore it or remove the version.") from None
    if sha256(content) != digest:
        raise StoreError(
            f"{path} is truncated or altered: its checksum differs from the card's. Restore it or remove the version."
        )
    return content


def _read_regular(folder: Path, name: str, max_bytes: int) -> bytes:
    """Read a regular file inside the version's folder, of at most `max_bytes`. Links may point inside the folder only.

    Raises:
        StoreError: the file lies outside, is no regular file (a FIFO, a device), or is too large.
        OSError: the file is missing or unreadable.
    """
    path = folder / name
    real = path.resolve()
    if not real.is_relative_to(folder.resolve()):
        raise StoreError(f"{path} lies outside the version, or is a link to a file outside.")
    with os.fdopen(os.open(real, _READ_FLAGS), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(f"{path} is not a regular file.")
        if status.st_size > max_bytes:
            raise StoreError(
                f"{path} makes the version larger than is loaded: {status.st_size:,} bytes, where {max_bytes:,} remain. "
                "Servers load at most ODDIGIT_MAX_VERSION_BYTES."
            )
        return file.read(status.st_size)  # a file that grows meanwhile fails its checksum


def sync_folder(folder: Path) -> None:
    """Write a folder and all files in it to the disk."""
    for path in [*folder.rglob("*"), folder]:
        _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
