"""TrainState on disk: tensors as safetensors, the rest as JSON; no pickle, and the newest complete one wins."""

from __future__ import annotations

import json
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from presto_core.registry.store import Folder, StoreError, commit, read_file, read_manifest
from presto_core.training.state import TrainState

TENSORS, SKELETON = "state.safetensors", "state.json"


def save_checkpoint(folder: Folder, state: TrainState, *, keep: int) -> Folder:
    """Commit `state` under step-<total_step>, then delete all but the newest `keep`."""
    tensors: dict[str, Tensor] = {}
    skeleton = _pack(state.state_dict(), "", tensors)
    target = folder.child(f"step-{state.total_step:09d}")
    files = {TENSORS: save(tensors), SKELETON: json.dumps(skeleton).encode()}
    commit(target, {"kind": "checkpoint", "total_step": state.total_step}, files)
    for name in _complete(folder)[:-keep]:
        folder.child(name).delete()
    return target


def load_checkpoint(folder: Folder, state: TrainState) -> bool:
    """Restore the newest complete checkpoint into `state`; False where there is none.

    Raises:
        StoreError: it is damaged, or belongs to another network.
    """
    names = _complete(folder)
    if not names:
        return False
    newest = folder.child(names[-1])
    manifest = read_manifest(newest)
    tensors = load(read_file(newest, TENSORS, manifest))
    skeleton = json.loads(read_file(newest, SKELETON, manifest))
    try:
        state.load_state_dict(_unpack(skeleton, tensors))
    except (RuntimeError, KeyError, ValueError) as error:
        why = " ".join(str(error).split())[:300]
        raise StoreError(f"checkpoint {newest.uri} does not fit this run's networks: {why}") from error
    return True


def _complete(folder: Folder) -> list[str]:
    """Committed checkpoints, oldest first."""
    return [name for name in folder.folders() if name.startswith("step-") and folder.child(name).exists()]


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """JSON-ready copy of a nested state in which tensors are replaced by their names in `tensors`."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous()
        return {"tensor": path}
    if isinstance(value, dict):
        # keys keep their type: optimiser states are keyed by int
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
