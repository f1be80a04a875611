"""A verb becomes a Ray job: checked here first, its settings frozen into it, sent, named and followed to its end."""

from __future__ import annotations

import getpass
import shlex
import tempfile
from pathlib import Path
from typing import Any

import typer

from infra.jobs.command import StageCommand, make_entrypoint, make_environment, make_job_id
from infra.jobs.log_follow import LogFollower
from infra.jobs.package import (
    CodePackage,
    build_package,
)
from infra.jobs.portability import (
    check_no_secrets,
    check_reachable,
    freeze_config,
)
from infra.jobs.ray_jobs import (
    RayJobsClient,
    run_id_of,
    warn_plain_http,
)
from infra.jobs.targets import Target, is_loopback_url
from pipelines.console import console
from pipelines.presets.resolve import print_config
from presto_core.config.loader import to_yaml
from presto_core.config.schema import StageConfig
from presto_core.errors import UserError

WITHOUT_RUN = ("corpus", "generate", "sweep")  # verbs that no run is recorded of, or many are


def submit(command: StageCommand, target: Target, *, dry_run: bool) -> None:
    """Send a verb to a Ray head and follow it.

    Raises:
        UserError: what cannot work there, in one sentence, before anything is sent.
        typer.Exit: with the job's exit status, where it is not 0.
    """
    config = freeze_config(command.stage, command.config)
    check_reachable(command.stage, config, target)
    settings = to_yaml(config)
    check_no_secrets(f"{settings} {shlex.join(command.options)}")
    package = None if config.submit.image else build_package(config.submit, settings)
    if dry_run:
        brought = f"with {package}" if package else f"in {config.submit.image}"
        typer.echo(f"# to {target.address}, {brought}: {make_entrypoint(command, config)}")
        print_config(command.stage, config)
        return
    head = RayJobsClient(target.address)
    _check_requires_token(head, config)
    check_cluster_capacity(command.stage, config, head)
    run_id = command.run_id or _resolve_run_id(command, config)
    _check_no_other_job(head, run_id)
    job_id = _send(command, config, package, head, run_id)
    _follow(command, config, head, job_id, run_id, target.address)


def check_cluster_capacity(stage: str, config: StageConfig, head: RayJobsClient) -> None:
    """Compare what a stage's workers ask for with the nodes that the cluster has now.

    Raises:
        ClusterError: they do not fit.
    """
    from pipelines.stages.resources import (
        SkippedError,
        check_stage_fits,
        list_stages_with_workers,
    )

    if stage not in list_stages_with_workers() or config.submit.autoscales:
        return
    try:
        check_stage_fits(stage, config.cluster, head.list_node_resources())
    except SkippedError:
        return


def _check_requires_token(head: RayJobsClient, config: StageConfig) -> None:
    """A Jobs API that wants no token runs anybody's code."""
    warn_plain_http(head.address, head.token)
    if not is_loopback_url(head.address) and not config.submit.allow_open_dashboard and head.allows_anonymous:
        raise UserError(
            f"{head.address} takes jobs from anyone who reaches it; start the cluster with RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN, or accept that with submit.allow_open_dashboard=true"
        )


def _resolve_run_id(command: StageCommand, config: StageConfig) -> str:
    """The run's id, where it can be known here: it follows from the ids of what it starts from.

    Raises:
        UserError: the registry answers, and does not have what the stage starts from.
    """
    from pipelines.registry.resolve import resolve

    if command.options or config.EXTERNAL_INPUT or command.stage in WITHOUT_RUN:
        return ""
    from pipelines.storage.filesystem import absolute_uri
    from pipelines.tracking.client import TrackingError, open_tracker
    from presto_core.artifacts.store import StoreError

    try:
        tracker = open_tracker(config.tracking)
    except TrackingError as error:
        console.print(f"the run's id is not known here: {error}", style="yellow", markup=False)
        return ""
    try:
        root = absolute_uri(config.storage.root)
        return config.run_id(
            {role: resolve(tracker.client, reference, root).id for role, reference in config.references().items()}
        )
    except StoreError as error:  # the nodes may well reach what this machine does not
        console.print(f"the run's id is not known here: {error}", style="yellow", markup=False)
        return ""


def _check_no_other_job(head: RayJobsClient, run_id: str) -> None:
    """Two jobs at one run would write the same checkpoints."""
    for job in head.list_jobs() if run_id else []:
        if run_id_of(job) == run_id and not job.status.is_terminal():
            raise UserError(
                f"job {job.submission_id} is at run {run_id} already; follow it: presto jobs logs -f "
                f"{job.submission_id}, or stop it first"
            )


def _send(
    command: StageCommand, config: StageConfig, package: CodePackage | None, head: RayJobsClient, run_id: str
) -> str:
    """Send the job; returns its id."""
    job_id = make_job_id(command)
    runtime_env: dict[str, Any] = {"env_vars": make_environment(config, job_id)}
    metadata = {"presto.stage": command.stage, "presto.run_id": run_id, "presto.user": getpass.getuser()}
    with tempfile.TemporaryDirectory(prefix="presto-job-") as folder:
        if package:
            package.write(Path(folder))
            runtime_env["working_dir"] = folder
        head.send(
            entrypoint=make_entrypoint(command, config), job_id=job_id, runtime_env=runtime_env, metadata=metadata
        )
    return job_id


def _follow(
    command: StageCommand, config: StageConfig, head: RayJobsClient, job_id: str, run_id: str, address: str
) -> None:
    run = f", run {run_id}" if run_id else ""
    console.print(f"{command.stage}: job {job_id}{run}, sent to {address}", markup=False)
    console.print(f"follow it: presto jobs logs -f {job_id} --on {address}", markup=False)
    if not config.submit.follow:
        return
    if code := LogFollower(head, job_id).follow():
        raise typer.Exit(code)
