"""Checkpoints: the state of an unfinished training in one file. A kill at any moment leaves the old file or the new one.

The files lie in a hidden folder beside the versions, `model_store/mnist/.checkpoints/`, one file for each configuration, so
that concurrent trainings do not overwrite each other. `train.py` decides the content.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from app.detection.drafts import remove_stale_drafts, write_atomically
from app.training.config import TrainConfig
from app.training.datasets import DataSet

FOLDER = ".checkpoints"

State = dict[str, Any]  # tensors, numbers, strings, and lists and dicts of them


class CheckpointError(RuntimeError):
    """There is no checkpoint to resume, it is damaged, or it belongs to another training; the message says what to do."""


def checkpoint_path(config: TrainConfig, dataset: DataSet) -> Path:
    """The file for this configuration on these images."""
    data = {"sha256": dataset.digest, "labels_sha256": dataset.labels_digest}  # the split depends on the labels
    content = json.dumps({**config.described(), **data}, sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return config.root / str(config.name) / FOLDER / f"{digest[:16]}.pth"


def save_checkpoint(state: State, path: Path) -> None:
    """Write `state` to `path`, in place of the file that is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: torch.save(state, file))


def load_checkpoint(path: Path, config: TrainConfig) -> State:
    """Read the state at `path`, with its tensors on the CPU.

    Raises:
        CheckpointError: the file is damaged or does not exist. If another checkpoint of this detector exists, the message
            lists how the configuration of the newest one differs.
    """
    if path.exists():
        return _read(path)
    others = sorted(path.parent.glob("*.pth"), key=lambda other: other.stat().st_mtime)
    if not others:
        raise CheckpointError(f"There is no interrupted training of {config.name!r} to resume; start it without --resume.")
    theirs, ours = _read(others[-1]).get("config", {}), config.described()
    changed = [f"{key} {theirs[key]} (now {ours.get(key)})" for key in theirs if theirs[key] != ours.get(key)]
    raise CheckpointError(
        f"The interrupted training of {config.name!r} differs in {', '.join(changed) or 'its images or labels'}; "
        "repeat its own command with --resume, or leave --resume out to start anew."
    )


def remove_checkpoint(path: Path) -> None:
    """Delete the checkpoint of a finished training, temporary files of killed trainings, and the folder if it is empty then."""
    path.unlink(missing_ok=True)
    remove_stale_drafts(path.parent)
    try:
        path.parent.rmdir()
    except OSError:
        return  # another training's checkpoint is there


def damaged(path: Path) -> CheckpointError:
    """The error for a file that holds no state of a training."""
    return CheckpointError(f"{path} is damaged; remove it and train from the beginning, without --resume.")


def _read(path: Path) -> State:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)  # tensors and plain values, no code
    except Exception as error:  # torch.load raises any type of error
        raise damaged(path) from error
    if not isinstance(state, dict) or not isinstance(state.get("config"), dict):
        raise damaged(path)
    return state
