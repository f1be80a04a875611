"""`presto jobs list|status|logs|wait|stop`: jobs that were submitted to a Ray head."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.cli.options import AsJson, add_dry_run
from infra.jobs.targets import API_SERVER, Kind, parse_target
from pipelines.console import console, print_table, print_text
from pipelines.terminal import print_log
from presto_core.config.loader import ConfigError

if TYPE_CHECKING:
    from infra.jobs.ray_jobs import RayJobsClient

app = typer.Typer(no_args_is_help=True, help="Jobs on a Ray cluster: status, log, exit status.")

Address = Annotated[
    str,
    typer.Option(
        "--on", metavar="HEAD", envvar=API_SERVER, help="The Ray head: http(s)://HEAD:8265.", show_default=False
    ),
]
Name = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or the id of its run.", show_default=False)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print which job would be stopped and its status, and stop.")]
COLUMNS = ("job", "status", "run", "by", "started", "took")  # no more columns, so that ids are not cut


@app.command("list")
@add_dry_run
def list_jobs(on: Address = "", as_json: AsJson = False) -> None:
    """List jobs, newest first."""
    rows = [describe_job(job) for job in _connect(on).list_jobs()]
    if as_json:
        print_text(json.dumps(rows, indent=2))
    else:
        print_table(f"{len(rows)} jobs", COLUMNS, [[row[name] for name in COLUMNS] for row in rows])


@app.command()
@add_dry_run
def status(job: Name, on: Address = "", as_json: AsJson = False) -> None:
    """Print a job's status and, if it failed, why."""
    found = _connect(on).find_job(job)
    row = describe_job(found) | {
        "command": str(found.entrypoint),
        "message": " ".join(str(found.message or "").split()),
    }
    if as_json:
        print_text(json.dumps(row, indent=2))
    else:
        print_table(row["job"], None, [[name, value[-600:]] for name, value in row.items() if value])


@app.command()
@add_dry_run
def logs(
    job: Name,
    on: Address = "",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Follow the log to the job's end; exit with its status.")
    ] = False,
) -> None:
    """Print a job's log; with -f, stream it and reconnect if the connection is lost."""
    head = _connect(on)
    job_id = head.find_job(job).submission_id
    if follow:
        _follow_to_exit(head, job_id)
    else:
        print_log(head.get_logs(job_id))


@app.command()
@add_dry_run
def wait(
    job: Name,
    on: Address = "",
    timeout: Annotated[float, typer.Option(help="Seconds to wait, then exit with 124; 0: no limit.", min=0)] = 0,
) -> None:
    """Wait until a job ends, without printing its log; exit with its status."""
    head = _connect(on)
    _follow_to_exit(head, head.find_job(job).submission_id, quiet=True, limit_s=timeout)


@app.command()
def stop(
    job: Name,
    on: Address = "",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait until the job ends.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Stop a job after it saves its state; re-run its command to resume."""
    head = _connect(on)
    found = head.find_job(job)
    job_id, status = found.submission_id, str(found.status.value)
    if found.status.is_terminal():
        console.print(f"job {job_id} has already ended: {status}", markup=False)
        return
    if dry_run:
        console.print(f"would stop job {job_id} ({status})", markup=False)
        return
    head.stop(job_id)
    console.print(f"job {job_id} is stopping; it saves its state first", markup=False)
    if not no_wait:
        from infra.jobs.log_follow import LogFollower

        LogFollower(head, job_id, quiet=True).follow()


def describe_job(job: Any) -> dict[str, str]:
    """Return a job's row for tables and JSON."""
    metadata = job.metadata or {}
    began, ended = job.start_time or 0, job.end_time or 0
    until = ended or datetime.now(UTC).timestamp() * 1000
    return {
        "job": str(job.submission_id),
        "status": str(job.status.value),
        "stage": str(metadata.get("presto.stage", "")),
        "run": str(metadata.get("presto.run_id", "")),
        "by": str(metadata.get("presto.user", "")),
        "started": f"{datetime.fromtimestamp(began / 1000, UTC):%Y-%m-%d %H:%M:%SZ}" if began else "",
        "took": f"{(until - began) / 1000:.0f} s" if began else "",
        "exit status": "" if job.driver_exit_code is None else str(job.driver_exit_code),
    }


def _follow_to_exit(head: RayJobsClient, job_id: str, **how: Any) -> None:
    from infra.jobs.log_follow import LogFollower

    if code := LogFollower(head, job_id, **how).follow():
        raise typer.Exit(code)


def _connect(on: str) -> RayJobsClient:
    from infra.jobs.ray_jobs import RayJobsClient

    if not on:
        raise ConfigError(f"no Ray head is given; pass --on http://HEAD:8265, or set {API_SERVER}")
    target = parse_target(on)
    if target.kind is not Kind.HEAD:
        raise ConfigError(f"--on {on} is not a Ray head; pass http://HEAD:8265 (on Kubernetes, its service)")
    return RayJobsClient(target.address)
