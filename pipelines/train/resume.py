"""`--resume RUN_ID` and `--fork`: resume a run by its id, or start another one from its newest checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pipelines.console import console
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.manifest import run_folder
from presto_core.artifacts.run_layout import CHECKPOINTS, RUN_FILE
from presto_core.artifacts.store import commit, read_bytes, write_bytes
from presto_core.config.loader import flatten
from presto_core.config.stage import StageConfig
from presto_core.errors import UserError
from presto_core.training.checkpoint_folders import CheckpointName

FORKED_FROM = "forked_from"  # role of a checkpoint among a run's parents: <run_id>/step-<total_step>


@dataclass(frozen=True)
class ResumeOptions:
    """Which run a command resumes; without a run id, the one that its own settings hash to.

    Attributes:
        fork: if the settings differ, start a new run from the newest checkpoint of the named one.

    Raises:
        UserError: `fork` without a run id.
    """

    run_id: str = ""
    fork: bool = False

    def __post_init__(self) -> None:
        if self.fork and not self.run_id:  # refused before anything is looked up
            raise UserError("--fork needs the run to start from; name it: --resume RUN_ID")


def find_forked_checkpoint(
    resume: ResumeOptions, root: Folder, stage: str, config: StageConfig, parents: dict[str, str]
) -> dict[str, str]:
    """The checkpoint that a run is forked from, as a further parent; empty if it is not forked.

    Raises:
        UserError: there is no such unfinished run, it is of another stage, or its settings differ without `fork`.
    """
    if not resume.run_id:
        return {}
    run_info = _read_run_info(root, resume.run_id)
    if run_info["stage"] != stage:
        raise UserError(f"run {resume.run_id} is of {run_info['stage']}, not of {stage}; use that command")
    fork_parents = {role: parent_id for role, parent_id in run_info["parents"].items() if role == FORKED_FROM}
    if config.run_id(parents | fork_parents) == resume.run_id:
        return fork_parents
    if not resume.fork:
        differences = ", ".join(f"{k}: {change}" for k, change in differing_settings(run_info, config, parents).items())
        raise UserError(
            f"run {resume.run_id} was started with other settings: {differences}; "
            "give it the same, or start a new run from its newest checkpoint with --fork"
        )
    return {FORKED_FROM: _find_newest_checkpoint(root, resume.run_id)}


def record_run_start(scratch: Folder, root: Folder, stage: str, config: StageConfig, parents: dict[str, str]) -> None:
    """Record a run's settings before its first step, and copy the checkpoint that a fork starts from.

    Raises:
        StoreError: the checkpoint was deleted meanwhile, is damaged, or cannot be copied.
    """
    if scratch.exists(RUN_FILE):
        return
    if FORKED_FROM in parents:
        _copy_checkpoint(root, parents[FORKED_FROM], scratch)
    run_info = {
        "stage": stage,
        "parents": parents,
        "result": config.result_config(),
        "config": config.model_dump(exclude={"storage", "tracking", "submit"}),
    }
    write_bytes(scratch, RUN_FILE, json.dumps(run_info, indent=2).encode())


def _read_run_info(root: Folder, run_id: str) -> dict[str, Any]:
    scratch = run_folder(root, run_id)
    if not scratch.exists(RUN_FILE):
        unfinished = root.child("runs").list_folders()
        raise UserError(
            f"no unfinished run {run_id} in {root.uri}; there is "
            f"{', '.join(unfinished) or 'none'} (a finished run needs no resuming: its artifact is used)"
        )
    run_info: dict[str, Any] = json.loads(read_bytes(scratch, RUN_FILE))
    return run_info


def differing_settings(run_info: dict[str, Any], config: StageConfig, parents: dict[str, str]) -> dict[str, str]:
    """Settings and parents that decide the result and differ from a recorded run's: key -> `old -> new`."""
    old_parents = {role: of for role, of in run_info["parents"].items() if role != FORKED_FROM}
    old = flatten(run_info["result"]) | {f"inputs.{role}": of for role, of in old_parents.items()}
    new = flatten(json.loads(json.dumps(config.result_config())))
    new |= {f"inputs.{role}": of for role, of in parents.items()}
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return {key: f"{_format_value(old, key)} -> {_format_value(new, key)}" for key in keys}


def _format_value(settings: dict[str, Any], key: str) -> str:
    return json.dumps(settings[key]) if key in settings else "not set"


def _find_newest_checkpoint(root: Folder, run_id: str) -> str:
    checkpoints = run_folder(root, run_id).child(CHECKPOINTS)
    newest = _read_newest(checkpoints)
    if newest is None:
        raise UserError(f"run {run_id} has no checkpoint to start from yet; leave out --resume and --fork")
    return _format_reference(run_id, newest[0])


def _format_reference(run_id: str, checkpoint: Folder) -> str:
    """Name a checkpoint by its step alone: the epoch in its folder's name is not part of what is in it."""
    name = CheckpointName.parse(checkpoint.uri.rpartition("/")[2])
    assert name
    return f"{run_id}/{CheckpointName(1, name.step)}"


def _copy_checkpoint(root: Folder, reference: str, scratch: Folder) -> None:
    """Copy the checkpoint: the run it comes from deletes its checkpoints as it continues, and at its end."""
    run_id, _, name = reference.partition("/")
    newest = _read_newest(run_folder(root, run_id).child(CHECKPOINTS))
    if newest is None or _format_reference(run_id, newest[0]) != reference:
        raise UserError(
            f"run {run_id} is training meanwhile and checkpoint {reference} is no longer its newest; try again"
        )
    manifest = {"kind": "checkpoint", "total_step": int(name.removeprefix("step-")), FORKED_FROM: reference}
    commit(scratch.child(CHECKPOINTS).child(name), manifest, newest[1])
    console.print(f"forked from {reference}")


def _read_newest(checkpoints: Folder) -> tuple[Folder, dict[str, bytes]] | None:
    from presto_core.training.checkpoint import read_newest_checkpoint  # imports torch, which `presto runs` needs not

    return read_newest_checkpoint(checkpoints, _warn)


def _warn(message: str) -> None:
    console.print(message, style="yellow", markup=False)
