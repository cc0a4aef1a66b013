"""Which checkpoint belongs to which training: a configuration and its images in, the state to go on from out."""

import hashlib
import json
from pathlib import Path

from app.training.checkpoint import CheckpointError, State, checkpoint_path, load_checkpoint, other_checkpoints
from app.training.config import TrainConfig
from app.training.datasets import DataSet


def checkpoint_of(config: TrainConfig, dataset: DataSet) -> Path:
    """Where this very training, of these images, keeps its checkpoint."""
    content = json.dumps({**config.described(), "sha256": dataset.digest}, sort_keys=True)
    return checkpoint_path(config.root, str(config.name), hashlib.sha256(content.encode()).hexdigest())


def find_state(checkpoint: Path, config: TrainConfig) -> State:
    """The interrupted training's state. Raises CheckpointError where there is none for this very configuration."""
    state = load_checkpoint(checkpoint)
    if state is not None:
        return state
    others = other_checkpoints(checkpoint)
    if not others:
        raise CheckpointError(f"There is no interrupted training of {config.name!r} to resume; start it without --resume.")
    theirs, ours = (load_checkpoint(others[0]) or {}).get("config", {}), config.described()
    changed = [f"{key} {theirs[key]} (now {ours.get(key)})" for key in theirs if theirs[key] != ours.get(key)]
    raise CheckpointError(
        f"The interrupted training of {config.name!r} differs in {', '.join(changed) or 'its images'}; "
        "repeat its own command with --resume, or leave --resume out to start anew."
    )
