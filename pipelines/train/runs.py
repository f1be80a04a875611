"""The unfinished runs below a storage root: what they are, how far they came, and which is nearest to a new one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipelines.console import console
from pipelines.tracking.client import Tracker
from pipelines.train.resume import differing_settings
from presto_core.artifacts.folder import MANIFEST, Folder
from presto_core.artifacts.manifest import artifact_folder, run_folder
from presto_core.artifacts.run_layout import CHECKPOINTS, RUN_FILE
from presto_core.artifacts.store import StoreError, read_bytes
from presto_core.config.stage import StageConfig
from presto_core.errors import UserError

MAX_NAMED_SETTINGS = 3
ACTIVE_S = 600  # a run whose files changed within this time may have a live driver
MLFLOW_STATES = {"RUNNING": "running", "KILLED": "stopped", "FAILED": "failed", "FINISHED": "finished"}


@dataclass(frozen=True)
class UnfinishedRun:
    """A run with a scratch folder.

    Attributes:
        state: as MLflow has it; `running` also for a run that a SIGKILL ended. `unknown` without a record there, `done`
            if its artifact exists and only the scratch folder is left.
        step: of the newest committed checkpoint; None if there is none.
        started, changed: when its settings were recorded, and when its newest checkpoint was written.
    """

    run_id: str
    stage: str
    state: str
    step: int | None
    started: datetime
    changed: datetime
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {
            "run_id": self.run_id,
            "stage": self.stage,
            "state": self.state,
            "step": self.step,
            "started": self.started.isoformat(timespec="seconds"),
            "last_checkpoint": self.changed.isoformat(timespec="seconds") if self.step is not None else None,
        }


def list_runs(root: Folder, tracker: Tracker) -> list[UnfinishedRun]:
    """All runs with a scratch folder below a storage root, the newest first.

    Raises:
        StoreError: the root cannot be listed.
    """
    runs = (_read_run(root, run_id, tracker) for run_id in root.child("runs").list_folders())
    return sorted((run for run in runs if run), key=lambda run: run.started, reverse=True)


def close_run(root: Folder, tracker: Tracker, run_id: str, *, force: bool = False) -> str:
    """Mark a run that no process works on as stopped in MLflow; what it had been marked as.

    Args:
        force: even if its files changed a moment ago.

    Raises:
        UserError: no such run, MLflow does not call it running, or it seems to be at work.
    """
    mlflow_id = tracker.find_run(run_id)
    if mlflow_id is None:
        raise UserError(f"MLflow has no run {run_id}; name one that presto runs lists")
    status = str(tracker.client.get_run(mlflow_id).info.status)
    if status != "RUNNING":
        raise UserError(f"run {run_id} is {MLFLOW_STATES.get(status, status.lower())} in MLflow already; nothing to do")
    run = _read_run(root, run_id, tracker)
    age_s = (datetime.now(UTC) - run.changed).total_seconds() if run else ACTIVE_S
    if age_s < ACTIVE_S and not force:
        raise UserError(
            f"run {run_id} wrote a file {age_s:.0f} s ago and may still be at work; stop it first, or give --force"
        )
    tracker.client.set_terminated(mlflow_id, status="KILLED")
    return status


def explain_new_run(root: Folder, stage: str, run_id: str, config: StageConfig, parents: dict[str, str]) -> None:
    """Print the unfinished run of this stage that is nearest to a new one, and what differs: three lines at most."""
    nearest: tuple[dict[str, str], str] | None = None
    for other_id, run_info in _iter_run_infos(root):
        if run_info["stage"] != stage or other_id == run_id:
            continue
        difference = differing_settings(run_info, config, parents)
        if nearest is None or len(difference) < len(nearest[0]):
            nearest = (difference, other_id)
    if nearest is None:
        return
    difference, other_id = nearest
    step, _ = _newest_step(run_folder(root, other_id))
    where = "without a checkpoint" if step is None else f"with a checkpoint at step {step}"
    named = [f"{key}: {change}" for key, change in list(difference.items())[:MAX_NAMED_SETTINGS]]
    more = f" and {len(difference) - len(named)} more" if len(difference) > len(named) else ""
    console.print(f"{stage}: this is a new run; the nearest unfinished one is {other_id}, {where}", markup=False)
    console.print(f"  it differs in {', '.join(named)}{more}", markup=False)
    if step is not None:
        console.print(f"  to start from its checkpoint: --resume {other_id} --fork", markup=False)


def _iter_run_infos(root: Folder) -> Iterator[tuple[str, dict[str, Any]]]:
    for run_id in root.child("runs").list_folders():
        scratch = run_folder(root, run_id)
        try:
            run_info = _read_run_info(scratch) if scratch.exists(RUN_FILE) else None
        except StoreError:  # deleted meanwhile, as at the end of a run
            continue
        if run_info:
            yield run_id, run_info


def _read_run_info(scratch: Folder) -> dict[str, Any] | None:
    """What `record_run_start` wrote; None, with a warning, if it is damaged, which must not stop other runs."""
    content = read_bytes(scratch, RUN_FILE)
    try:
        run_info: dict[str, Any] = json.loads(content)
        if {"stage", "parents", "result"} <= run_info.keys():
            return run_info
    except (ValueError, AttributeError):
        pass
    console.print(f"{scratch.uri}/{RUN_FILE} is damaged, so this run is left out", style="yellow", markup=False)
    return None


def _read_run(root: Folder, run_id: str, tracker: Tracker) -> UnfinishedRun | None:
    """None if the folder holds no run, such as one that was deleted meanwhile."""
    scratch = run_folder(root, run_id)
    started = next((info.mtime for info in scratch.list_files(missing_ok=True) if info.base_name == RUN_FILE), None)
    if started is None:
        return None
    run_info = _read_run_info(scratch)
    if run_info is None:
        return None
    step, changed = _newest_step(scratch)
    mlflow_id = tracker.find_run(run_id)
    status = str(tracker.client.get_run(mlflow_id).info.status) if mlflow_id else ""
    state = "done" if artifact_folder(root, run_id).exists() else MLFLOW_STATES.get(status, "unknown")
    return UnfinishedRun(run_id, str(run_info["stage"]), state, step, started, changed or started, run_info["result"])


def _newest_step(scratch: Folder) -> tuple[int | None, datetime | None]:
    """Step and time of the newest committed checkpoint."""
    files = scratch.child(CHECKPOINTS).list_files(recursive=True, missing_ok=True)
    manifests = {info.path.split("/")[-2]: info.mtime for info in files if info.base_name == MANIFEST}
    if not manifests:
        return None, None
    newest = max(manifests)
    return int(newest.rpartition("-")[2]), manifests[newest]
