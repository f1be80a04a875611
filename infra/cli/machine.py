"""`presto up|down|doctor`: the surroundings of a run, started, stopped and tried out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infra.cli.options import Preview, StageArgs
from pipelines.console import console
from pipelines.presets.resolve import split_preset

OBJECT_STORE = Path(".presto/object_store")


def up(
    port: Annotated[int, typer.Option(help="Port of the S3 endpoint; 0 takes a free one.")] = 0,
    bucket: Annotated[str, typer.Option(help="Bucket to create.")] = "presto",
    dry_run: Preview = False,
) -> None:
    """Start an S3 server on this machine and print its environment: eval "$(presto up)"."""
    import os

    from pipelines.storage import filesystem as storage
    from pipelines.storage import local_s3 as embedded_s3

    if dry_run:
        runs, where = embedded_s3.find(OBJECT_STORE), f"port {port}" if port else "a free port"
        begin = f"the S3 server at {runs.endpoint} runs already" if runs else f"would start an S3 server on {where}"
        console.print(f"{begin}; bucket {bucket} is made unless it is there; data in {OBJECT_STORE}")
        return
    server, started = embedded_s3.start(OBJECT_STORE, port=port)
    os.environ.update(server.environment())
    storage.create_bucket(bucket)
    for name, value in server.environment().items():
        typer.echo(f"export {name}={value}")
    state = "started" if started else "runs already"
    console.print(f"object store {state}: {server.endpoint}, storage.root=s3://{bucket}, stop it with: presto down")


def down(dry_run: Preview = False) -> None:
    """Stop the S3 server that `presto up` started; its data stay."""
    from pipelines.storage import local_s3 as embedded_s3

    if dry_run:
        runs = embedded_s3.find(OBJECT_STORE)
        console.print(f"would stop the object store at {runs.endpoint}" if runs else "no object store runs here")
        return
    stopped = embedded_s3.stop(OBJECT_STORE)
    console.print("object store stopped" if stopped else "no object store runs here")


def doctor(
    words: StageArgs = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be checked, and stop.")] = False,
) -> None:
    """Try out what a preset needs: Python, torch, Ray, storage, MLflow, disk; say what fails and how to mend it."""
    from pipelines.doctor import doctor as practice

    checks = practice.make_checks(*split_preset(words or []))
    if dry_run:
        practice.show_plan(checks, as_json=as_json)
    elif not practice.show(practice.run(checks), as_json=as_json):
        raise typer.Exit(1)
