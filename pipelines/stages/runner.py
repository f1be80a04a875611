"""What every stage does around its own work: resolve parents, derive the run id, reuse or run, track and register."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipelines.console import console
from pipelines.inference.lazy_mlflow import save_mlflow_model
from pipelines.registry.publish import publish
from pipelines.registry.resolve import resolve
from pipelines.storage.filesystem import absolute_uri, open_folder
from pipelines.tracking.client import open_tracker
from pipelines.tracking.metric_log import read_rows, replay_rows
from pipelines.tracking.run import TrackedRun, with_retries
from pipelines.train.resume import ResumeOptions, find_forked_checkpoint, record_run_start
from pipelines.train.runs import explain_new_run
from pipelines.train.sweep_hook import Trial
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.manifest import Artifact, artifact_folder, read_artifact, run_folder
from presto_core.artifacts.run_layout import RUN_FILE
from presto_core.config.stage import StageConfig
from presto_core.extras import MissingPackageError, check_extra

REPORTS = Path(".presto/reports")


@dataclass(frozen=True)
class StageContext:
    """Where one execution of a stage reads and writes.

    Attributes:
        run_id: id of the run and of the artifact it makes.
        parents: role -> artifact it starts from.
        forked_from: the checkpoint that a forked run started from, as a further parent.
        artifact: folder to commit the artifact in.
        scratch: folder of checkpoints and partial results.
        run: its record in MLflow.
        trial: the sweep it belongs to, if it does.
    """

    run_id: str
    parents: dict[str, Artifact]
    forked_from: dict[str, str]
    artifact: Folder
    scratch: Folder
    run: TrackedRun
    trial: Trial | None = None

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
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(render())
            self.run.attach(path)

    @property
    def parent_ids(self) -> dict[str, str]:
        return {role: artifact.id for role, artifact in self.parents.items()} | self.forked_from


def run_stage(
    stage: str,
    config: StageConfig,
    execute: Callable[[StageContext], None],
    *,
    register_as: str,
    inputs: dict[str, str] | None = None,
    resume: ResumeOptions = ResumeOptions(),
    trial: Trial | None = None,
) -> Artifact:
    """Run a stage unless its artifact exists, and register the artifact.

    Args:
        execute: does the work and commits `ctx.artifact`; may resume from `ctx.scratch`.
        inputs: hashes of inputs that are not artifacts (a folder of audio).
        resume: an unfinished run that this must be, or start from.
        trial: the sweep that this run belongs to; its result is then not registered.

    Raises:
        UserError: whatever the stage, storage or tracking could not do.
    """
    root = open_folder(absolute_uri(config.storage.root), setting="storage.root")
    tracker = open_tracker(config.tracking)
    parents = {role: resolve(tracker.client, reference, root.uri) for role, reference in config.references().items()}
    ids = {role: a.id for role, a in parents.items()}
    forked_from = find_forked_checkpoint(resume, root, stage, config, ids)
    run_id = config.run_id(ids | forked_from | (inputs or {}))
    folder, scratch = artifact_folder(root, run_id), run_folder(root, run_id)
    with tracker.run(stage, config, run_id, parents, origin=forked_from, tags=trial.tags if trial else {}) as run:
        run.stored_rows = partial(read_rows, scratch)
        if folder.exists():
            console.print(f"{stage}: run {run_id} is finished, its result is reused")
            replay_rows(scratch, run)
        else:
            console.print(f"{stage}: run {run_id}")
            if not trial and not forked_from and not scratch.exists(RUN_FILE):
                explain_new_run(root, stage, run_id, config, ids)
            record_run_start(scratch, root, stage, config, ids | forked_from)
            execute(StageContext(run_id, parents, forked_from, folder, scratch, run, trial))
        artifact = read_artifact(folder)
        version = None
        if not trial:
            version = with_retries(
                lambda: publish(
                    tracker.client,
                    register_as,
                    artifact,
                    mlflow_run=run.mlflow_id,
                    stage=stage,
                    root=root,
                    pack=save_mlflow_model,
                )
            )
        run.flush_all()
        scratch.delete()  # checkpoints, rows and partial results of a finished run are not needed any more
    if version:
        console.print(
            f"{stage}: {version.name}@{version.alias} is version {version.number} = {artifact.id}, {artifact.uri}"
        )
    return artifact
