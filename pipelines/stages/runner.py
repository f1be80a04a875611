"""What every stage does around its own work: resolve parents, derive the run id, reuse or run, track and register."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.console import console
from pipelines.inference.lazy_mlflow import save_mlflow_model
from pipelines.registry.names import RegistryError
from pipelines.registry.presence import suggest_command
from pipelines.registry.publish import publish
from pipelines.registry.resolve import resolve
from pipelines.storage.fence import Fence
from pipelines.storage.filesystem import absolute_uri, open_folder
from pipelines.storage.lease import Lease, hold_lease
from pipelines.tracking.client import Tracker, open_tracker
from pipelines.tracking.metric_log import read_rows, replay_rows
from pipelines.tracking.run import TrackedRun, with_retries
from pipelines.train.resume import ResumeOptions, find_forked_checkpoint, record_run_start
from pipelines.train.runs import explain_new_run
from pipelines.train.sweep_hook import Trial
from presto_core.artifacts.durable import make_folders
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.manifest import Artifact, artifact_folder, read_artifact, run_folder
from presto_core.artifacts.run_layout import LEASE, RUN_FILE
from presto_core.artifacts.store import StoreError
from presto_core.config.stage import StageConfig
from presto_core.errors import UserError
from presto_core.extras import MissingPackageError, check_extra

REPORTS = Path(".presto/reports")


@dataclass(frozen=True)
class StageContext:
    """Where one execution of a stage reads and writes.

    Attributes:
        run_id: id of the run and of the artifact it makes.
        config: its settings, settled.
        parents: role -> artifact it starts from.
        forked_from: the checkpoint that a forked run started from, as a further parent.
        artifact: folder to commit the artifact in.
        scratch: folder of checkpoints and partial results.
        run: its record in MLflow.
        trial: the sweep it belongs to, if it does.
        fence: guards what this process, and workers that it is sent to, change in `artifact` and `scratch`.
    """

    run_id: str
    config: Any
    parents: dict[str, Artifact]
    forked_from: dict[str, str]
    artifact: Folder
    scratch: Folder
    run: TrackedRun
    trial: Trial | None = None
    fence: Fence | None = None

    def save_plots(self, renderers: dict[str, Callable[[], bytes]]) -> None:
        """Save plots by file name, locally and to the run in MLflow; a sweep plots its trials together instead.

        Without matplotlib one line says how many are skipped: training is done by then, and its result is complete.
        """
        if self.trial:
            return
        try:
            check_extra("plots", "drawing plots")
        except MissingPackageError as error:
            names = ", ".join(renderers)
            console.print(f"run {self.run_id}: {len(renderers)} plots skipped ({names}): {error}", markup=False)
            return
        for name, render in renderers.items():
            path = REPORTS / self.run_id / name
            make_folders(path.parent)
            path.write_bytes(render())
            self.run.attach(path)

    @property
    def parent_ids(self) -> dict[str, str]:
        return {role: artifact.id for role, artifact in self.parents.items()} | self.forked_from


def _resolve_parent(client: Any, role: str, reference: str, storage_root: str) -> Artifact:
    """Look an input up; if the registry does not have it, the error tells what makes one."""
    try:
        return resolve(client, reference, storage_root)
    except RegistryError as error:
        raise RegistryError(f"{error}. If there is none yet, {suggest_command(role)}") from None


def run_stage(
    stage: str,
    config: StageConfig,
    execute: Callable[[StageContext], None],
    *,
    register_as: str,
    inputs: dict[str, str] | None = None,
    resume: ResumeOptions = ResumeOptions(),
    trial: Trial | None = None,
    settle: Callable[[Any, dict[str, Artifact]], Any] = lambda config, parents: config,
) -> Artifact:
    """Run a stage unless its artifact exists, and register the artifact.

    One process at a time works on a run, whose lease it holds. The record of a run that is finished does not change.

    Args:
        execute: does the work and commits `ctx.artifact`; may resume from `ctx.scratch`.
        inputs: hashes of inputs that are not artifacts (a folder of audio).
        resume: an unfinished run that this must be, or start from.
        trial: the sweep that this run belongs to; its result is then not registered.
        settle: completes settings with what follows from the parents, before the run has an id.

    Raises:
        LeaseHeldError: another process works on this run.
        UserError: whatever the stage, storage or tracking could not do.
    """
    root = open_folder(absolute_uri(config.storage.root), setting="storage.root")
    tracker = open_tracker(config.tracking)
    parents = {
        role: _resolve_parent(tracker.client, role, reference, root.uri)
        for role, reference in config.references().items()
    }
    config = settle(config, parents)
    ids = {role: a.id for role, a in parents.items()}
    forked_from = find_forked_checkpoint(resume, root, stage, config, ids)
    run_id = config.run_id(ids | forked_from | (inputs or {}))
    folder, scratch = artifact_folder(root, run_id), run_folder(root, run_id)
    register = None if trial else partial(_publish, tracker, stage, root, register_as)
    if (recorded := _find_record(tracker, folder, run_id)) and not _has_files(scratch):
        return _finish(folder, register, stage, recorded)
    with hold_lease(scratch.child(LEASE), f"{stage} run {run_id}", wait=config.cluster.wait_for_run) as lease:
        folder, guarded = lease.fence.guard(folder), lease.fence.guard(scratch)
        finish = partial(_finish, folder, register and partial(register, check_holder=lease.check))
        # looked up again: another process may have finished it meanwhile, or was killed while it cleaned up
        if recorded := _find_record(tracker, folder, run_id):
            artifact = finish(stage, recorded)
        else:
            opened = tracker.run(
                stage,
                config,
                run_id,
                parents,
                origin=forked_from,
                tags=trial.tags if trial else {},
                name="" if trial else register_as,
            )
            with _stop_if_lost(lease), opened as run:
                in_main_thread = threading.current_thread() is threading.main_thread()
                lease.on_lost = partial(_stop_work, run, in_main_thread=in_main_thread)
                run.check_holder = lease.check
                run.stored_rows = partial(read_rows, scratch)
                is_new = not folder.exists()
                if is_new:
                    console.print(f"{stage}: run {run_id}")
                    if not trial:
                        tracker.announce(run.mlflow_id)
                    if not trial and not forked_from and not scratch.exists(RUN_FILE):
                        explain_new_run(root, stage, run_id, config, ids)
                    record_run_start(guarded, root, stage, config, ids | forked_from)
                    execute(
                        StageContext(run_id, config, parents, forked_from, folder, guarded, run, trial, lease.fence)
                    )
                else:
                    replay_rows(scratch, run)
                lease.check()
                artifact = finish("" if is_new else stage, run.mlflow_id)
        lease.check()
        lease.stop()
        scratch.delete()  # checkpoints, rows and partial results of a finished run are not needed any more
    return artifact


def _find_record(tracker: Tracker, folder: Folder, run_id: str) -> str | None:
    """Return MLflow's id of a run whose artifact exists and which is FINISHED there: its record stays as it is."""
    return tracker.find_finished_run(run_id) if folder.exists() else None


def _has_files(scratch: Folder) -> bool:
    return bool(scratch.list_files(recursive=True, missing_ok=True))


def _finish(folder: Folder, register: Callable[[Artifact, str], None] | None, reused: str, mlflow_run: str) -> Artifact:
    """Read the artifact and register it; `reused` names the stage of an artifact that was there before."""
    if reused:
        console.print(f"{reused}: run {folder.uri.rpartition('/')[2]} is finished, its result is reused", markup=False)
    artifact = read_artifact(folder)
    if register:
        register(artifact, mlflow_run)
    return artifact


def _publish(
    tracker: Tracker,
    stage: str,
    root: Folder,
    name: str,
    artifact: Artifact,
    mlflow_run: str,
    *,
    check_holder: Callable[[], None] = lambda: None,
) -> None:
    version = with_retries(
        lambda: publish(
            tracker.client,
            name,
            artifact,
            mlflow_run=mlflow_run,
            stage=stage,
            root=root,
            pack=save_mlflow_model,
            check_holder=check_holder,
        )
    )
    console.print(
        f"{stage}: {version.name}@{version.alias} is version {version.number} = {artifact.id}, {artifact.uri}"
    )


def _stop_work(run: TrackedRun, *, in_main_thread: bool) -> None:
    """Another process continues this run: neither write to its record nor go on with its work."""
    run.fence()
    if in_main_thread:  # a signal, since nothing else interrupts a wait
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@contextmanager
def _stop_if_lost(lease: Lease) -> Iterator[None]:
    """Say who took the run over, whatever its loss interrupted or a worker made of it."""
    try:
        yield
    except (KeyboardInterrupt, UserError):
        with suppress(StoreError):
            lease.check()
        raise
