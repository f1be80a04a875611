"""The unfinished runs below a storage root: what they are, how far they came, and which is nearest to a new one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipelines.console import console
from pipelines.storage.lease import describe_holder
from pipelines.tracking.client import Tracker
from pipelines.tracking.tags import RUN_ID, STAGE, STORAGE_ROOT
from pipelines.train.resume import differing_settings
from presto_core.artifacts.folder import MANIFEST, Folder
from presto_core.artifacts.manifest import artifact_folder, run_folder
from presto_core.artifacts.run_layout import CHECKPOINTS, LEASE, RUN_FILE
from presto_core.artifacts.store import StoreError, read_bytes
from presto_core.config.stage import StageConfig
from presto_core.errors import UserError
from presto_core.training.checkpoint_folders import CheckpointName

MAX_NAMED_SETTINGS = 3
ACTIVE_S = 600  # a run without a lease whose files changed within this time may have a live driver
MAX_RECORDED = 1000
MLFLOW_STATES = {"RUNNING": "running", "KILLED": "stopped", "FAILED": "failed", "FINISHED": "finished"}


@dataclass(frozen=True)
class UnfinishedRun:
    """A run with a scratch folder.

    Attributes:
        state: as MLflow has it; `running` also for a run that a SIGKILL ended, unless its lease shows that: `killed`.
            `unknown` without a record there, `done` if its artifact exists and only the scratch folder is left.
        step: of the newest committed checkpoint; None if there is none.
        started, changed: when its settings were recorded, and when its newest checkpoint was written.
        holder: the process that works on it, if one does; empty also for runs of a former release.
    """

    run_id: str
    stage: str
    state: str
    step: int | None
    started: datetime
    changed: datetime
    settings: dict[str, Any]
    holder: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "run_id": self.run_id,
            "stage": self.stage,
            "state": self.state,
            "step": self.step,
            "started": self.started.isoformat(timespec="seconds"),
            "last_checkpoint": self.changed.isoformat(timespec="seconds") if self.step is not None else None,
            "holder": self.holder,
        }


def list_runs(root: Folder, tracker: Tracker) -> list[UnfinishedRun]:
    """All runs with a scratch folder below a storage root, and those that MLflow alone has as running; newest first.

    Raises:
        StoreError: the root cannot be listed.
    """
    found = (_read_run(root, run_id, tracker) for run_id in root.child("runs").list_folders())
    runs = {run.run_id: run for run in found if run}
    recorded = (run for run in _iter_recorded_only(root, tracker) if run.run_id not in runs)
    return sorted([*runs.values(), *recorded], key=lambda run: run.started, reverse=True)


def close_run(root: Folder, tracker: Tracker, run_id: str, *, force: bool = False) -> str:
    """Mark a run that no process works on as stopped in MLflow; what it had been marked as.

    Args:
        force: even if its files changed a moment ago, or a process seems to work on it.

    Raises:
        UserError: no such run, MLflow does not call it running, or it seems to be at work.
    """
    mlflow_id = tracker.find_run(run_id)
    if mlflow_id is None:
        raise UserError(f"MLflow has no run {run_id}; name one that presto runs lists")
    status = str(tracker.client.get_run(mlflow_id).info.status)
    if status != "RUNNING":
        raise UserError(f"run {run_id} is {MLFLOW_STATES.get(status, status.lower())} in MLflow already; nothing to do")
    if not force:
        _check_not_at_work(root, tracker, run_id)
    tracker.client.set_terminated(mlflow_id, status="KILLED")
    return status


def _check_not_at_work(root: Folder, tracker: Tracker, run_id: str) -> None:
    """Ask the run's lease, or, for one that never had any, how old its files are."""
    leases = _find_leases(root, run_id)
    for lease in leases:
        if holder := describe_holder(lease):
            raise UserError(f"run {run_id} is being worked on by {holder}; stop it first, or give --force")
    if leases:
        return
    run = _read_run(root, run_id, tracker)
    age_s = (datetime.now(UTC) - run.changed).total_seconds() if run else ACTIVE_S
    if age_s < ACTIVE_S:
        raise UserError(
            f"run {run_id} wrote a file {age_s:.0f} s ago and may still be at work; stop it first, or give --force"
        )


def _find_leases(root: Folder, run_id: str) -> list[Folder]:
    """The lease of a run, or of a sweep; none if it was never taken."""
    leases = [root.child(kind).child(run_id).child(LEASE) for kind in ("runs", "sweeps")]
    return [lease for lease in leases if lease.list_files(missing_ok=True)]


def _iter_recorded_only(root: Folder, tracker: Tracker) -> Iterator[UnfinishedRun]:
    """Runs below this root that MLflow has as RUNNING: killed before their first file, or after they deleted the last.

    A sweep is one too: its files lie in a folder of its own.
    """
    query = f"attributes.status = 'RUNNING' and tags.`{STORAGE_ROOT}` = '{root.uri}'"
    for run in tracker.client.search_runs([tracker.experiment_id], query, max_results=MAX_RECORDED):
        tags, started = run.data.tags, datetime.fromtimestamp(run.info.start_time / 1000, UTC)
        run_id = tags.get(RUN_ID, "")
        if run_id and not run_folder(root, run_id).exists(RUN_FILE):
            holder = "".join(map(describe_holder, _find_leases(root, run_id)))
            yield UnfinishedRun(run_id, tags.get(STAGE, ""), "running", None, started, started, {}, holder)


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
    lease = scratch.child(LEASE)
    holder = describe_holder(lease)
    if state == "running" and not holder and lease.list_files(missing_ok=True):
        state = "killed"
    stage, settings = str(run_info["stage"]), run_info["result"]
    return UnfinishedRun(run_id, stage, state, step, started, changed or started, settings, holder)


def _newest_step(scratch: Folder) -> tuple[int | None, datetime | None]:
    """Step and time of the newest committed checkpoint."""
    files = scratch.child(CHECKPOINTS).list_files(recursive=True, missing_ok=True)
    found = (
        (CheckpointName.parse(info.path.split("/")[-2]), info.mtime) for info in files if info.base_name == MANIFEST
    )
    manifests = {name: written for name, written in found if name}
    if not manifests:
        return None, None
    newest = max(manifests)
    return newest.step, manifests[newest]
