"""Checkpoints of a TrainState: tensors as safetensors, the rest as JSON; no pickle.

A checkpoint is a folder step-<total_step> whose manifest is written last: without one it does not exist. A run resumes
from the newest complete one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from safetensors.torch import save
from torch import Tensor

from presto_core.artifacts.folder import MANIFEST, Folder
from presto_core.artifacts.store import DamagedError, StoreError, commit, read_file, read_manifest
from presto_core.training.checkpoint_reading import TensorStream
from presto_core.training.sharding import TensorName
from presto_core.training.state import TrainState

TENSORS, SKELETON = "state.safetensors", "state.json"

Warn = Callable[[str], None]
Result = TypeVar("Result")


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


def write_checkpoint(folder: Folder, snapshot: Snapshot) -> Folder:
    """Commit a snapshot as step-<total_step>.

    Raises:
        StoreError: it cannot be written; other checkpoints are left untouched.
    """
    target = folder.child(f"step-{snapshot.total_step:09d}")
    _delete(target)  # damaged or incomplete
    files = {TENSORS: save(snapshot.tensors), SKELETON: json.dumps(snapshot.skeleton).encode()}
    commit(target, {"kind": "checkpoint", "total_step": snapshot.total_step}, files)
    return target


def delete_old(folder: Folder, *, newest: int, keep: int, every: int = 0) -> None:
    """Delete all checkpoints except the last `keep` and those at multiples of `every` steps.

    Args:
        newest: step of the checkpoint just committed; any with a later step is damaged or incomplete.
    """
    complete = {name for name in _checkpoint_names(folder) if folder.child(name).exists()}
    upto = sorted(name for name in complete if _parse_step(name) <= newest)
    kept = {*upto[-keep:], *(name for name in upto if every and _parse_step(name) and _parse_step(name) % every == 0)}
    for name in _checkpoint_names(folder):
        if name not in kept:
            _delete(folder.child(name))


def delete_incomplete(folder: Folder) -> None:
    """Delete checkpoints without a manifest, left by an interrupted save."""
    for name in _checkpoint_names(folder):
        if not folder.child(name).exists():
            folder.child(name).delete()


def read_newest_checkpoint(folder: Folder, warn: Warn = lambda message: None) -> tuple[Folder, dict[str, bytes]] | None:
    """Read the newest complete checkpoint and its verified files; None if there is no checkpoint.

    Args:
        warn: called with a message per damaged checkpoint that is skipped.

    Raises:
        StoreError: all checkpoints are damaged, or the store is unreachable.
    """

    def read(checkpoint: Folder) -> dict[str, bytes]:
        manifest = read_manifest(checkpoint)
        return {file: read_file(checkpoint, file, manifest) for file in (TENSORS, SKELETON)}

    return _use_newest(folder, read, warn)


def load_checkpoint(folder: Folder, state: TrainState, warn: Warn = lambda message: None) -> bool:
    """Restore the newest complete checkpoint into `state`, tensor by tensor; return False if there is none.

    Raises:
        StoreError: see `read_newest_checkpoint`, and the state is not to be used then; or the checkpoint belongs to
            another network.
    """

    def load(checkpoint: Folder) -> None:
        try:
            _load(checkpoint, state)
        except DamagedError:
            if not folder.is_remote:
                raise
            _load(checkpoint, state)  # distinguishes damage in transit from damage in the store

    return _use_newest(folder, load, warn) is not None


def _load(checkpoint: Folder, state: TrainState) -> None:
    manifest = read_manifest(checkpoint)
    skeleton = _unpack(json.loads(read_file(checkpoint, SKELETON, manifest)))
    stream = TensorStream(checkpoint, TENSORS, sha256=manifest["files"][TENSORS]["sha256"])
    try:
        state.load_stream(skeleton, stream)
    except (RuntimeError, KeyError, ValueError) as error:
        stream.verify()  # damaged bytes do not fit either, but those of another checkpoint may
        reason = " ".join(str(error).split())[:300]
        folder = checkpoint.uri.rpartition("/")[0]
        raise StoreError(
            f"checkpoint {checkpoint.uri} does not fit this run's networks ({reason}); delete {folder} to start over"
        ) from error


def _use_newest(folder: Folder, use: Callable[[Folder], Result], warn: Warn) -> tuple[Folder, Result] | None:
    """Use the newest checkpoint that is not damaged; None if there is no checkpoint."""
    damaged: list[DamagedError] = []
    for name in reversed(_checkpoint_names(folder)):
        checkpoint = folder.child(name)
        if not checkpoint.exists():
            continue
        try:
            result = use(checkpoint)
        except DamagedError as error:
            damaged.append(error)
            continue
        for why in damaged:
            warn(f"skipping a damaged checkpoint, using the one of step {_parse_step(name)} instead: {why}")
        return checkpoint, result
    if damaged:
        raise StoreError(f"all checkpoints are damaged: {damaged[0]}; delete {folder.uri} to start over")
    return None


def _checkpoint_names(folder: Folder) -> list[str]:
    """Return the names of checkpoint folders, complete or not, oldest first."""
    return [name for name in folder.list_folders() if name.startswith("step-")]


def _parse_step(name: str) -> int:
    return int(name.removeprefix("step-"))


def _delete(checkpoint: Folder) -> None:
    """Delete the manifest first, so that an interrupted deletion does not look like a damaged checkpoint."""
    checkpoint.delete_file(MANIFEST)
    checkpoint.delete()


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


def _unpack(value: Any) -> Any:
    """Undo `_pack`, with names in place of tensors."""
    if isinstance(value, list):
        return [_unpack(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return TensorName(value["tensor"])
    return {k: _unpack(v) for k, v in value["items"]}
