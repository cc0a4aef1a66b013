"""One version of a detector as one archive (zip), to bring it to another store. Unpacking trusts nothing in it.

The archive holds card.json and the files that the card lists with their checksums, and nothing else.
"""

import io
import re
import tempfile
import zipfile
import zlib
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from app.detection.bundle import MAX_VERSION_BYTES, read_entry
from app.detection.store import CARD, StoreError, load, load_card, sync_folder

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")  # of a file; no part begins with a dot
_DATE = (2000, 1, 1, 0, 0, 0)  # the same version gives the same archive


class ArchiveError(RuntimeError):
    """The archive is not one of a version, or is damaged; the message says why."""


class _Label(BaseModel):
    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")
    version: int = Field(ge=1, strict=True)


def pack(folder: Path) -> bytes:
    """The version in this folder as an archive, after all its checksums were verified. Raises StoreError."""
    load(folder)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in (CARD, *sorted(load_card(folder).files)):
            archive.writestr(zipfile.ZipInfo(name, _DATE), (folder / name).read_bytes(), zipfile.ZIP_DEFLATED)
    return out.getvalue()


def unpack(data: bytes, root: Path, max_bytes: int = MAX_VERSION_BYTES) -> Path:
    """Put the version of an archive into the store, under its own number; returns its folder.

    Nothing appears in the store before every file has been compared with its checksum. A version that is there already stays.

    Raises:
        ArchiveError: the archive is damaged, unpacks to more than `max_bytes`, or has other files than a version.
        StoreError: a file of the version is damaged, or the store has another or a damaged version of this number.
    """
    files = _read(data, max_bytes)
    try:
        label = _Label.model_validate_json(files.get(CARD, b""))
    except ValidationError:
        raise ArchiveError(f"The archive has no {CARD} of a version.") from None
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=root) as draft:
        folder = Path(draft) / label.name / str(label.version)
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        card = load(folder, max_bytes).card
        if files.keys() != {CARD, *card.files}:
            raise ArchiveError("The archive has other files than those that its card lists.")
        sync_folder(folder)
        return _move(folder, root / label.name / str(label.version))


def _read(data: bytes, max_bytes: int) -> dict[str, bytes]:
    """Name -> content of all files of an archive, in memory. Raises ArchiveError."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries):
                raise ArchiveError("The archive has another compression than Deflate; pack it with `oddigit push`.")
            if sum(entry.file_size for entry in entries) > max_bytes:
                raise ArchiveError(f"The archive unpacks to more than {max_bytes:,} bytes.")
            files = {entry.filename: read_entry(archive, entry) for entry in entries if _NAME.fullmatch(entry.filename)}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, ArchiveError):
            raise
        raise ArchiveError("The archive is damaged, or is no zip archive.") from None
    if len(files) != len(entries) or any(name.partition("/")[0] in files for name in files if "/" in name):
        raise ArchiveError("The archive has files with names that no version has.")
    return files


def _move(folder: Path, target: Path) -> Path:
    """Rename a complete version into the store; keep the one that is there if it is the same. Raises StoreError."""
    target.parent.mkdir(exist_ok=True)
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        if load_card(target) != load_card(folder):
            raise StoreError(
                f"{target} is another detector of the same number; remove it, or pull into another store."
            ) from None
        try:
            load(target)
        except StoreError as error:
            raise StoreError(f"{target} is there already, and damaged; remove it, and pull again. {error}") from None
    return target
