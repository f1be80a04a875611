"""`presto jobs list|status|logs|wait|stop`: what became of the verbs that were sent to a Ray head."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.cli.options import reads
from infra.jobs.targets import (
    API_SERVER,
    Kind,
    target_of,
)
from pipelines.console import console, print_table
from presto_core.errors import UserError

if TYPE_CHECKING:
    from infra.jobs.ray_jobs import Head

app = typer.Typer(no_args_is_help=True, help="Jobs on a Ray cluster: what runs there, its log, its end.")

Address = Annotated[
    str,
    typer.Option(
        "--on", metavar="HEAD", envvar=API_SERVER, help="The Ray head: http(s)://HEAD:8265.", show_default=False
    ),
]
Name = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or the id of its run.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say which job is meant, and stop.")]
COLUMNS = ("job", "status", "run", "by", "started", "took")  # ids must not be cut, so no more than fits


@app.command("list")
@reads
def list_jobs(on: Address = "", as_json: AsJson = False) -> None:
    """List jobs, the newest first."""
    rows = [described(job) for job in _head(on).jobs()]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        print_table(f"{len(rows)} jobs", COLUMNS, [[row[name] for name in COLUMNS] for row in rows])


@app.command()
@reads
def status(job: Name, on: Address = "", as_json: AsJson = False) -> None:
    """Say what a job is at, and why it failed."""
    found = _head(on).job(job)
    row = described(found) | {"command": str(found.entrypoint), "message": " ".join(str(found.message or "").split())}
    if as_json:
        typer.echo(json.dumps(row, indent=2))
    else:
        print_table(row["job"], None, [[name, value[-600:]] for name, value in row.items() if value])


@app.command()
@reads
def logs(
    job: Name,
    on: Address = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends; its exit status.")] = False,
) -> None:
    """Print a job's log; with -f as it comes, whatever befalls the connection."""
    head = _head(on)
    job_id = head.job(job).submission_id
    if follow:
        _end_with(head, job_id)
    else:
        typer.echo(head.logs(job_id), nl=False)


@app.command()
@reads
def wait(
    job: Name,
    on: Address = "",
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most, then status 124; 0 for ever.", min=0)] = 0,
) -> None:
    """Wait for a job's end without its log; the exit status is the job's."""
    head = _head(on)
    _end_with(head, head.job(job).submission_id, quiet=True, limit_s=timeout)


@app.command()
def stop(
    job: Name,
    on: Address = "",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait for its end.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Tell a job to save its state and end; the same command goes on with its run later."""
    head = _head(on)
    found = head.job(job)
    job_id, status = found.submission_id, str(found.status.value)
    if found.status.is_terminal():
        console.print(f"job {job_id} has ended already: {status}", markup=False)
        return
    if dry_run:
        console.print(f"job {job_id} ({status}) would be told to end", markup=False)
        return
    head.stop(job_id)
    console.print(f"job {job_id} is told to end; it saves its state first", markup=False)
    if not no_wait:
        from infra.jobs.log_follow import View

        View(head, job_id, quiet=True).to_the_end()


def described(job: Any) -> dict[str, str]:
    """A job's row in tables."""
    known = job.metadata or {}
    began, ended = job.start_time or 0, job.end_time or 0
    until = ended or datetime.now(UTC).timestamp() * 1000
    return {
        "job": str(job.submission_id),
        "status": str(job.status.value),
        "stage": str(known.get("presto.stage", "")),
        "run": str(known.get("presto.run_id", "")),
        "by": str(known.get("presto.user", "")),
        "started": f"{datetime.fromtimestamp(began / 1000, UTC):%Y-%m-%d %H:%M:%SZ}" if began else "",
        "took": f"{(until - began) / 1000:.0f} s" if began else "",
        "exit status": "" if job.driver_exit_code is None else str(job.driver_exit_code),
    }


def _end_with(head: Head, job_id: str, **how: Any) -> None:
    from infra.jobs.log_follow import View

    if code := View(head, job_id, **how).to_the_end():
        raise typer.Exit(code)


def _head(on: str) -> Head:
    from infra.jobs.ray_jobs import Head

    if not on:
        raise UserError(f"no Ray head is named; give --on http://HEAD:8265, or set {API_SERVER}")
    target = target_of(on)
    if target.kind is not Kind.HEAD:
        raise UserError(f"--on {on} keeps no jobs; give a Ray head's http://HEAD:8265 (on Kubernetes, its service)")
    return Head(target.address)
