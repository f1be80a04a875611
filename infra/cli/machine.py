"""`presto s3` and `presto doctor`: what a run needs around it, started, stopped and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infra.cli.options import Preview, StageArgs
from pipelines.console import console, print_text
from pipelines.presets.resolve import split_preset

OBJECT_STORE = Path(".presto/object_store")
s3_app = typer.Typer(no_args_is_help=True, help="An S3 server on this machine, for trying things out.")


@s3_app.command("start")
def start_s3(
    port: Annotated[int, typer.Option(help="Port of the S3 endpoint; 0 takes a free one.")] = 0,
    bucket: Annotated[str, typer.Option(help="Bucket to create.")] = "presto",
    dry_run: Preview = False,
) -> None:
    """Start an S3 server on this machine and print its environment: eval "$(presto s3 start)"."""
    import os

    from pipelines.storage import filesystem, local_s3

    if dry_run:
        runs, where = local_s3.find(OBJECT_STORE), f"port {port}" if port else "a free port"
        begin = f"the S3 server at {runs.endpoint} is running" if runs else f"would start an S3 server on {where}"
        console.print(f"{begin}; bucket {bucket} is created if it is missing; data in {OBJECT_STORE}")
        return
    server, started = local_s3.start(OBJECT_STORE, port=port)
    os.environ.update(server.environment())
    filesystem.create_bucket(bucket)
    for name, value in server.environment().items():
        print_text(f"export {name}={value}")
    state = "started" if started else "is running"
    console.print(f"S3 server {state}: {server.endpoint}, storage.root=s3://{bucket}; stop it with: presto s3 stop")


@s3_app.command("stop")
def stop_s3(dry_run: Preview = False) -> None:
    """Stop the S3 server that `presto s3 start` started; its data stay."""
    from pipelines.storage import local_s3

    if dry_run:
        runs = local_s3.find(OBJECT_STORE)
        console.print(f"would stop the S3 server at {runs.endpoint}" if runs else "no S3 server is running here")
        return
    stopped = local_s3.stop(OBJECT_STORE)
    console.print("S3 server stopped" if stopped else "no S3 server is running here")


def doctor(
    args: StageArgs = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be checked, and stop.")] = False,
) -> None:
    """Check what a preset needs: Python, torch, Ray, storage, MLflow, disk; name what fails and how to fix it."""
    from pipelines.doctor import doctor as checker

    checks = checker.make_checks(*split_preset(args or []))
    if dry_run:
        checker.show_plan(checks, as_json=as_json)
    elif not checker.show(checker.run(checks), as_json=as_json):
        raise typer.Exit(1)
