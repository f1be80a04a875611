"""Submit a command as a Ray job: check it locally, freeze its settings, send it and follow it to its end."""

from __future__ import annotations

import getpass
import shlex
import tempfile
from pathlib import Path
from typing import Any

from infra.jobs.command import StageCommand, make_entrypoint, make_environment, make_job_id
from infra.jobs.log_follow import LogFollower
from infra.jobs.package import CodePackage, build_package
from infra.jobs.portability import check_no_secrets, check_reachable, freeze_config
from infra.jobs.ray_jobs import RayJobsClient, run_id_of, warn_plain_http
from infra.jobs.targets import Target, is_loopback_url
from pipelines.console import console, print_text, print_warning
from pipelines.stages.dry_run import print_config
from pipelines.stages.table import STAGES
from presto_core.config.loader import to_yaml
from presto_core.config.schema import GenerateStage
from presto_core.config.stage import StageConfig
from presto_core.errors import UserError
from presto_core.models.pretrained import DEFAULT_GENERATOR, SCHEME, find_pretrained, list_pretrained


def submit(command: StageCommand, target: Target, *, dry_run: bool) -> None:
    """Send a command to a Ray head and follow it.

    Raises:
        UserError: a setting does not work on the cluster; raised before anything is sent.
        SystemExit: with the job's exit status if it is not 0.
    """
    config = freeze_config(command.stage, command.config)
    check_reachable(command.stage, config, target)
    settings = to_yaml(config)
    check_no_secrets(f"{settings} {shlex.join(command.argv(''))}")
    package = None if config.submit.image else build_package(config.submit, settings, pretrained=_list_models(config))
    if package and (notice := package.describe_left_out()):
        print_warning(notice)
    if dry_run:
        brought = f"with {package}" if package else f"in {config.submit.image}"
        print_text(f"# to {target.address}, {brought}: {make_entrypoint(command, config)}")
        print_config(command.stage, config)
        return
    head = RayJobsClient(target.address)
    _check_requires_token(head, config)
    check_cluster_capacity(command.stage, config, head)
    run_id = command.run_id or _resolve_run_id(command, config)
    _check_no_other_job(head, run_id)
    job_id = _send(command, config, package, head, run_id)
    _follow(command, config, head, job_id, run_id, target.address)


def _list_models(config: StageConfig) -> list[str]:
    """The models of the package that a job may read; generate without a model falls back on one of them."""
    if not config.references() and isinstance(config, GenerateStage):
        return [name for name in list_pretrained() if name == DEFAULT_GENERATOR]
    found = [find_pretrained(reference.removeprefix(SCHEME)) for reference in config.references().values()]
    return sorted({name for name in found if name})


def check_cluster_capacity(stage: str, config: StageConfig, head: RayJobsClient) -> None:
    """Check that a stage's workers fit on the nodes that the cluster has now.

    Raises:
        ClusterError: they do not fit.
    """
    from pipelines.stages.resources import SkippedError, check_stage_fits, list_stages_with_workers

    if stage not in list_stages_with_workers() or config.submit.autoscales:
        return
    try:
        check_stage_fits(stage, config.cluster, head.list_node_resources())
    except SkippedError:
        return


def _check_requires_token(head: RayJobsClient, config: StageConfig) -> None:
    """Reject a remote Jobs API that requires no token: it runs anyone's code."""
    warn_plain_http(head.address, head.token)
    if not is_loopback_url(head.address) and not config.submit.allow_open_dashboard and head.allows_anonymous:
        raise UserError(
            f"{head.address} accepts jobs without a token; start the cluster with RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN, or allow this with submit.allow_open_dashboard=true"
        )


def _resolve_run_id(command: StageCommand, config: StageConfig) -> str:
    """Return the run's id, derived from the ids of its inputs; empty if it cannot be computed here.

    Raises:
        UserError: the registry responds and does not have an input of the stage.
    """
    from pipelines.registry.resolve import resolve

    if command.resume or command.more_options or config.EXTERNAL_INPUT or not STAGES[command.stage].writes_run:
        return ""
    from pipelines.storage.filesystem import absolute_uri
    from pipelines.tracking.client import TrackingError, open_tracker
    from presto_core.artifacts.store import StoreError

    try:
        tracker = open_tracker(config.tracking)
    except TrackingError as error:
        console.print(f"the run's id cannot be computed here: {error}", style="yellow", markup=False)
        return ""
    try:
        root = absolute_uri(config.storage.root)
        return config.run_id(
            {role: resolve(tracker.client, reference, root).id for role, reference in config.references().items()}
        )
    except StoreError as error:  # the nodes may reach storage that this machine cannot
        console.print(f"the run's id cannot be computed here: {error}", style="yellow", markup=False)
        return ""


def _check_no_other_job(head: RayJobsClient, run_id: str) -> None:
    """Reject a second job on a run: both would write the same checkpoints."""
    for job in head.list_jobs() if run_id else []:
        if run_id_of(job) == run_id and not job.status.is_terminal():
            raise UserError(
                f"job {job.submission_id} already works on run {run_id}; follow it with presto jobs logs -f "
                f"{job.submission_id}, or stop it first"
            )


def _send(
    command: StageCommand, config: StageConfig, package: CodePackage | None, head: RayJobsClient, run_id: str
) -> str:
    """Send the job and return its id."""
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
        raise SystemExit(code)
