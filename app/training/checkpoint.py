"""Checkpoints: an unfinished training to one file and back. A kill at any moment leaves the old file or the new one.

They lie in a hidden folder beside the versions, `model_store/mnist/.checkpoints/`, one file for each configuration, so that
two trainings at once do not meet. What is in them is up to `train.py`.
"""

import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch

FOLDER = ".checkpoints"

State = dict[str, Any]  # tensors, numbers, strings, and lists and dicts of them


class CheckpointError(RuntimeError):
    """There is nothing to resume, or it belongs to another training; the message says what to do."""


def checkpoint_path(root: Path, name: str, digest: str) -> Path:
    """Where the training of `name` with the configuration that has this digest keeps its state."""
    return root / name / FOLDER / f"{digest[:16]}.pth"


def save_checkpoint(state: State, path: Path) -> None:
    """Write `state` to `path`: to a temporary file, to the disk, and then under its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(prefix=".draft-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def load_checkpoint(path: Path) -> State | None:
    """What was saved at `path`, its tensors on the CPU; None where nothing was. Reads tensors and plain values, no code.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} is damaged; remove it and train from the beginning, without --resume.") from error
    return state


def other_checkpoints(path: Path) -> list[Path]:
    """Unfinished trainings of the same detector with other configurations, the latest first."""
    others = [other for other in path.parent.glob("*.pth") if other != path]
    return sorted(others, key=lambda other: other.stat().st_mtime, reverse=True)


def remove_checkpoint(path: Path) -> None:
    """Forget a finished training, what a kill left of its drafts, and the folder when nothing else is in it."""
    path.unlink(missing_ok=True)
    try:
        path.parent.rmdir()
    except OSError:
        return  # another training's checkpoint is there
