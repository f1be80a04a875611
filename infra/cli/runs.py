"""`presto runs`: the unfinished runs below a storage root, and closing those that a SIGKILL left running in MLflow."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from infra.cli.groups import RunsGroup
from infra.cli.options import Preview, RegistryArgs, add_dry_run

app = typer.Typer(cls=RunsGroup, help="Unfinished runs below a storage root: their state, step and age.")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command("list")
@add_dry_run
def list_runs(args: RegistryArgs = None, as_json: AsJson = False) -> None:
    """List runs that are not finished: stage, state, step, age and last checkpoint. The default command."""
    from pipelines.console import console, print_table, print_text
    from pipelines.train.runs import list_runs as read_runs

    root, tracker = _open(args)
    runs = read_runs(root, tracker)
    if as_json:
        import json

        print_text(json.dumps([run.to_dict() for run in runs], indent=2))
        return
    if not runs:
        console.print(f"no unfinished runs below {root.uri}", markup=False)
        return
    rows = [
        [
            run.run_id,
            run.stage,
            run.state,
            "-" if run.step is None else str(run.step),
            _format_age(run.started),
            "none" if run.step is None else f"{_format_age(run.changed)} ago",
        ]
        for run in runs
    ]
    print_table(
        f"{len(runs)} unfinished runs below {root.uri}",
        ("run", "stage", "state", "step", "age", "checkpoint"),
        rows,
    )
    console.print("resume one: re-run its command; mark one that was killed: presto runs close RUN", markup=False)
    for run in runs:
        if run.holder:
            console.print(f"run {run.run_id} is being worked on by {run.holder}", markup=False)


@app.command()
def close(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="Run id, as presto runs lists it.")],
    args: RegistryArgs = None,
    force: Annotated[bool, typer.Option("--force", help="Mark it even if a process seems to work on it.")] = False,
    dry_run: Preview = False,
) -> None:
    """Mark a run that a SIGKILL left RUNNING in MLflow as KILLED; it can still be resumed."""
    from pipelines.console import console
    from pipelines.train.runs import close_run

    root, tracker = _open(args)
    if dry_run:
        console.print(f"would mark run {run_id} as KILLED in MLflow if it is RUNNING there", markup=False)
        return
    close_run(root, tracker, run_id, force=force)
    console.print(f"run {run_id} is marked as KILLED in MLflow; re-run its command to resume it", markup=False)


def _open(args: list[str] | None) -> tuple[Any, Any]:
    """The storage root and the tracker that the settings name."""
    from pipelines.presets.resolve import load_stage_config
    from pipelines.registry.presence import check_registry_exists
    from pipelines.storage.filesystem import absolute_uri, open_folder
    from pipelines.tracking.client import open_tracker

    config = load_stage_config("registry", args or [], takes_preset=False)
    check_registry_exists(config.tracking)
    return open_folder(absolute_uri(config.storage.root), setting="storage.root"), open_tracker(config.tracking)


def _format_age(moment: datetime) -> str:
    seconds = max((datetime.now(UTC) - moment).total_seconds(), 0)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
