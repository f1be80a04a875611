"""Checkpoints written at once, and the metrics that two identical runs share."""

from __future__ import annotations

from presto_core.artifacts.folder import Folder
from presto_core.training.checkpoint import Snapshot, write_checkpoint
from presto_core.training.checkpoint_folders import delete_old
from presto_core.training.state import TrainState


def save_checkpoint(folder: Folder, state: TrainState, *, keep: int, every: int = 0, epoch: int = 1) -> Folder:
    """Commit a checkpoint in this thread, then delete old ones, as `CheckpointWriter` does in another."""
    name = write_checkpoint(folder, Snapshot.from_state(state.state_dict()), epoch=epoch)
    delete_old(folder, newest=name, keep=keep, every=every)
    return folder.child(str(name))


def is_time(name: str) -> bool:
    """Return whether a metric is a duration, which differs between identical runs."""
    return name.endswith("step_seconds") or name == "data_wait_fraction"
