"""A verb becomes a Ray job: checked here first, its settings frozen into it, sent, named and followed to its end."""

from __future__ import annotations

import getpass
import shlex
import tempfile
from pathlib import Path
from typing import Any

import typer

from infra.jobs.command import Work, entrypoint, environment, new_job_id
from infra.jobs.log_follow import View
from infra.jobs.package import (
    Parcel,
    packed,
)
from infra.jobs.portability import (
    frozen,
    require_no_secrets,
    require_reachable,
)
from infra.jobs.ray_jobs import (
    Head,
    run_id_of,
    warn_of_plain_http,
)
from infra.jobs.targets import Target, on_loopback
from pipelines.console import console
from pipelines.presets.resolve import show
from presto_core.config.loader import to_yaml
from presto_core.config.schema import StageConfig
from presto_core.errors import UserError

WITHOUT_RUN = ("corpus", "generate", "sweep")  # verbs that no run is recorded of, or many are


def submit(work: Work, target: Target, *, dry_run: bool) -> None:
    """Send a verb to a Ray head and follow it.

    Raises:
        UserError: what cannot work there, in one sentence, before anything is sent.
        typer.Exit: with the job's exit status, where it is not 0.
    """
    config = frozen(work.stage, work.config)
    require_reachable(work.stage, config, target)
    settings = to_yaml(config)
    require_no_secrets(f"{settings} {shlex.join(work.options)}")
    parcel = None if config.submit.image else packed(config.submit, settings)
    if dry_run:
        brought = f"with {parcel}" if parcel else f"in {config.submit.image}"
        typer.echo(f"# to {target.address}, {brought}: {entrypoint(work, config)}")
        show(work.stage, config)
        return
    head = Head(target.address)
    _require_closed(head, config)
    require_room(work.stage, config, head)
    run_id = work.run_id or _known_run_id(work, config)
    _require_alone(head, run_id)
    job_id = _send(work, config, parcel, head, run_id)
    _follow(work, config, head, job_id, run_id, target.address)


def require_room(stage: str, config: StageConfig, head: Head) -> None:
    """Compare what a stage's workers ask for with the nodes that the cluster has now.

    Raises:
        ClusterError: they do not fit.
    """
    from pipelines.stages.resources import (
        SkippedError,
        require_places,
        stages_with_workers,
    )

    if stage not in stages_with_workers() or config.submit.autoscales:
        return
    try:
        require_places(stage, config.cluster, head.nodes())
    except SkippedError:
        return


def _require_closed(head: Head, config: StageConfig) -> None:
    """A Jobs API that wants no token runs anybody's code."""
    warn_of_plain_http(head.address, head.token)
    if not on_loopback(head.address) and not config.submit.allow_open_dashboard and head.is_open:
        raise UserError(
            f"{head.address} takes jobs from anyone who reaches it; start the cluster with RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN, or accept that with submit.allow_open_dashboard=true"
        )


def _known_run_id(work: Work, config: StageConfig) -> str:
    """The run's id, where it can be known here: it follows from the ids of what it starts from.

    Raises:
        UserError: the registry answers, and does not have what the stage starts from.
    """
    from pipelines.registry.resolve import resolve

    if work.options or config.READS or work.stage in WITHOUT_RUN:
        return ""
    from pipelines.storage.filesystem import absolute
    from pipelines.tracking.client import TrackingError, open_tracker
    from presto_core.artifacts.store import StoreError

    try:
        tracker = open_tracker(config.tracking)
    except TrackingError as error:
        console.print(f"the run's id is not known here: {error}", style="yellow", markup=False)
        return ""
    try:
        root = absolute(config.storage.root)
        return config.run_id(
            {role: resolve(tracker.client, said, root).id for role, said in config.references().items()}
        )
    except StoreError as error:  # the nodes may well reach what this machine does not
        console.print(f"the run's id is not known here: {error}", style="yellow", markup=False)
        return ""


def _require_alone(head: Head, run_id: str) -> None:
    """Two jobs at one run would write the same checkpoints."""
    for job in head.jobs() if run_id else []:
        if run_id_of(job) == run_id and not job.status.is_terminal():
            raise UserError(
                f"job {job.submission_id} is at run {run_id} already; follow it: presto jobs logs -f "
                f"{job.submission_id}, or stop it first"
            )


def _send(work: Work, config: StageConfig, parcel: Parcel | None, head: Head, run_id: str) -> str:
    """Send the job; returns its id."""
    job_id = new_job_id(work)
    runtime_env: dict[str, Any] = {"env_vars": environment(config, job_id)}
    metadata = {"presto.stage": work.stage, "presto.run_id": run_id, "presto.user": getpass.getuser()}
    with tempfile.TemporaryDirectory(prefix="presto-job-") as folder:
        if parcel:
            parcel.write(Path(folder))
            runtime_env["working_dir"] = folder
        head.send(entrypoint=entrypoint(work, config), job_id=job_id, runtime_env=runtime_env, metadata=metadata)
    return job_id


def _follow(work: Work, config: StageConfig, head: Head, job_id: str, run_id: str, address: str) -> None:
    run = f", run {run_id}" if run_id else ""
    console.print(f"{work.stage}: job {job_id}{run}, sent to {address}", markup=False)
    console.print(f"follow it: presto jobs logs -f {job_id} --on {address}", markup=False)
    if not config.submit.follow:
        return
    if code := View(head, job_id).to_the_end():
        raise typer.Exit(code)
