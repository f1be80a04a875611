"""Checkpoints of a TrainState: tensors as safetensors, the rest as JSON; no pickle.

A checkpoint is a folder (named in checkpoint_folders.py) whose manifest is written last: without one it does not exist.
A run resumes from the newest complete one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import DamagedError, StoreError, commit, read_file, read_manifest
from presto_core.training.checkpoint_folders import CheckpointName, delete_checkpoint, list_checkpoints
from presto_core.training.state import TrainState

TENSORS, SKELETON = "state.safetensors", "state.json"

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Snapshot:
    """A state at one step, copied to CPU memory so that training can continue.

    Attributes:
        skeleton: JSON-ready copy of the nested state, with tensors replaced by their names.
    """

    total_step: int
    tensors: dict[str, Tensor]
    skeleton: Any

    @staticmethod
    def from_state(state: dict[str, Any]) -> Snapshot:
        """Copy the result of `TrainState.state_dict`."""
        tensors: dict[str, Tensor] = {}
        skeleton = _pack(state, "", tensors)
        return Snapshot(state["total_step"], tensors, skeleton)


def write_checkpoint(folder: Folder, snapshot: Snapshot, *, epoch: int = 1) -> CheckpointName:
    """Commit a snapshot as the checkpoint of its step, written in this epoch of the run's lease.

    Raises:
        StoreError: it cannot be written; other checkpoints are left untouched.
    """
    name = CheckpointName(epoch, snapshot.total_step)
    target = folder.child(str(name))
    delete_checkpoint(target)  # damaged or incomplete
    files = {TENSORS: save(snapshot.tensors), SKELETON: json.dumps(snapshot.skeleton).encode()}
    commit(target, {"kind": "checkpoint", "total_step": snapshot.total_step}, files)
    return name


def read_newest_checkpoint(folder: Folder, warn: Warn = lambda message: None) -> tuple[Folder, dict[str, bytes]] | None:
    """Read the newest complete checkpoint and its verified files; None if there is no checkpoint.

    Args:
        warn: called with a message per damaged checkpoint that is skipped.

    Raises:
        StoreError: all checkpoints are damaged, or the store is unreachable.
    """
    damaged: list[DamagedError] = []
    for name in reversed(list_checkpoints(folder)):
        checkpoint = folder.child(str(name))
        if not checkpoint.exists():
            continue
        try:
            manifest = read_manifest(checkpoint)
            files = {file: read_file(checkpoint, file, manifest) for file in (TENSORS, SKELETON)}
        except DamagedError as error:
            damaged.append(error)
            continue
        for why in damaged:
            warn(f"skipping a damaged checkpoint, using the one of step {name.step} instead: {why}")
        return checkpoint, files
    if damaged:
        raise StoreError(f"all checkpoints are damaged: {damaged[0]}; delete {folder.uri} to start over")
    return None


def load_checkpoint(folder: Folder, state: TrainState, warn: Warn = lambda message: None) -> bool:
    """Restore the newest complete checkpoint into `state`; return False if there is none.

    Raises:
        StoreError: see `read_newest_checkpoint`; or the checkpoint belongs to another network.
    """
    newest = read_newest_checkpoint(folder, warn)
    if newest is None:
        return False
    checkpoint, files = newest
    try:
        state.load_state_dict(_unpack(json.loads(files[SKELETON]), load(files[TENSORS])))
    except (RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise StoreError(
            f"checkpoint {checkpoint.uri} does not fit this run's networks ({reason}); "
            f"delete {folder.uri} to start over"
        ) from error
    return True


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Return a JSON-ready copy of a nested state, with tensors moved to `tensors` and replaced by their names."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": path}
    if isinstance(value, dict):
        # pairs, because JSON would turn the int keys of optimiser states into strings
        return {"items": [[k, _pack(v, f"{path}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [_pack(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]
    return value


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    return {k: _unpack(v, tensors) for k, v in value["items"]}
