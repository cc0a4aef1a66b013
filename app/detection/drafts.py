"""Drafts: hidden files and folders, renamed when they are complete, so that a kill leaves the old state or the new one."""

import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

DRAFT_PREFIX = ".draft-"
_STALE_S = 3600.0  # a younger draft may still be written


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` with a draft beside `path`, flush it to the disk and rename it; of two writers at once, the last wins."""
    draft = path.with_name(f"{DRAFT_PREFIX}{secrets.token_hex(8)}")
    try:
        with draft.open("xb") as file:  # tempfile would make a file that others cannot read
            write(file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise


def remove_stale_drafts(folder: Path) -> None:
    """Remove the drafts in `folder` that killed processes left."""
    for draft in folder.glob(f"{DRAFT_PREFIX}*"):
        with suppress(OSError):  # renamed meanwhile
            if time.time() - draft.stat().st_mtime > _STALE_S:
                shutil.rmtree(draft, ignore_errors=True) if draft.is_dir() else draft.unlink()
