"""`--resume RUN_ID` and `--fork`: go on with a run by name, or start another one from its newest checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pipelines.console import console
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.manifest import run_folder
from presto_core.artifacts.run_layout import CHECKPOINTS, RUN_FILE
from presto_core.artifacts.store import (
    commit,
    read_bytes,
    write_bytes,
)
from presto_core.config.loader import flatten
from presto_core.config.schema import StageConfig
from presto_core.errors import UserError
from presto_core.training.checkpoint import read_newest_checkpoint

FORKED_FROM = "forked_from"  # role of a checkpoint among a run's parents: <run_id>/step-<total_step>


@dataclass(frozen=True)
class ResumeOptions:
    """Which run a command goes on with; none named: the one that its own settings mean.

    Attributes:
        fork: where the settings differ, start a run of its own from the newest checkpoint of the named one.

    Raises:
        UserError: a fork of no run.
    """

    run_id: str = ""
    fork: bool = False

    def __post_init__(self) -> None:
        if self.fork and not self.run_id:  # said before anything is looked up
            raise UserError("--fork needs the run to start from; name it: --resume RUN_ID")


def find_forked_checkpoint(
    resume: ResumeOptions, root: Folder, stage: str, config: StageConfig, parents: dict[str, str]
) -> dict[str, str]:
    """What a run has for a parent beside artifacts: the checkpoint it was forked from, if it was.

    Raises:
        UserError: no such run is under way, it is of another stage, or of other settings and no fork is wanted.
    """
    if not resume.run_id:
        return {}
    run_info = _read_run_info(root, resume.run_id)
    if run_info["stage"] != stage:
        raise UserError(f"run {resume.run_id} is of {run_info['stage']}, not of {stage}; use that verb")
    fork_parents = {role: parent_id for role, parent_id in run_info["parents"].items() if role == FORKED_FROM}
    if config.run_id(parents | fork_parents) == resume.run_id:
        return fork_parents
    if not resume.fork:
        raise UserError(
            f"run {resume.run_id} was started with other settings: "
            f"{_describe_difference(run_info, config, parents)}; "
            "give it the same, or start a new run from its newest checkpoint with --fork"
        )
    return {FORKED_FROM: _find_newest_checkpoint(root, resume.run_id)}


def record_run_start(scratch: Folder, root: Folder, stage: str, config: StageConfig, parents: dict[str, str]) -> None:
    """Before a run's first step: record its settings, and give a fork the checkpoint that it starts from.

    Raises:
        StoreError: the checkpoint is gone meanwhile, damaged, or cannot be copied.
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
            f"no run {run_id} is under way in {root.uri}; there is {', '.join(unfinished) or 'none'} (a run that is "
            "done needs no resuming: its artifact is used)"
        )
    run_info: dict[str, Any] = json.loads(read_bytes(scratch, RUN_FILE))
    return run_info


def _describe_difference(run_info: dict[str, Any], config: StageConfig, parents: dict[str, str]) -> str:
    """Settings and parents that decide the result and are not the same: `key: old -> new`."""
    old_parents = {role: of for role, of in run_info["parents"].items() if role != FORKED_FROM}
    old = flatten(run_info["result"]) | {f"inputs.{role}": of for role, of in old_parents.items()}
    new = flatten(json.loads(json.dumps(config.result_config())))
    new |= {f"inputs.{role}": of for role, of in parents.items()}
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key}: {_format_value(old, key)} -> {_format_value(new, key)}" for key in keys)


def _format_value(settings: dict[str, Any], key: str) -> str:
    return json.dumps(settings[key]) if key in settings else "not set"


def _find_newest_checkpoint(root: Folder, run_id: str) -> str:
    checkpoints = run_folder(root, run_id).child(CHECKPOINTS)
    newest = read_newest_checkpoint(checkpoints, _warn)
    if newest is None:
        raise UserError(f"run {run_id} has no checkpoint to start from yet; leave out --resume and --fork")
    return f"{run_id}/{newest[0].uri.rpartition('/')[2]}"


def _copy_checkpoint(root: Folder, reference: str, scratch: Folder) -> None:
    """A copy of its own: the run it comes from deletes its checkpoints when it goes on, and at its end."""
    run_id, _, name = reference.partition("/")
    newest = read_newest_checkpoint(run_folder(root, run_id).child(CHECKPOINTS), _warn)
    if newest is None or newest[0].uri.rpartition("/")[2] != name:
        raise UserError(f"run {run_id} goes on meanwhile and checkpoint {reference} is not its newest; try again")
    manifest = {"kind": "checkpoint", "total_step": int(name.removeprefix("step-")), FORKED_FROM: reference}
    commit(scratch.child(CHECKPOINTS).child(name), manifest, newest[1])
    console.print(f"forked from {reference}")


def _warn(message: str) -> None:
    console.print(message, style="yellow", markup=False)
