"""`presto dataset show|verify|stats|split|quarantine`: what a data set holds, and whether it is sound."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from infra.cli.options import add_dry_run
from pipelines.console import console, print_table
from pipelines.presets.resolve import load_stage_config

app = typer.Typer(no_args_is_help=True, help="What a data set of latents holds, and whether it is sound.")

DatasetArgs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="inputs.dataset=NAME@ALIAS, an id or a URI (presto-dataset@candidate unless told), storage.root=...",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
@add_dry_run
def show(words: DatasetArgs = None, as_json: AsJson = False) -> None:
    """Print what the manifest says: rows, hours, shapes, codec, text encoder, licences, bad files."""
    from pipelines.data import inspection

    _print("data set", inspection.describe(_open_dataset(words)), as_json)


@app.command()
@add_dry_run
def verify(words: DatasetArgs = None) -> None:
    """Read every byte again and compare it with the manifest: hashes, rows, shapes, one split a composition."""
    from pipelines.data import inspection

    found = inspection.verify(_open_dataset(words))
    console.print(
        f"dataset verify: {found.shards} shards, {found.rows} rows, {found.files} other files: all as committed"
    )


@app.command()
@add_dry_run
def stats(words: DatasetArgs = None, as_json: AsJson = False) -> None:
    """Compute from the latents what the manifest claims: mean, deviation, sigma_data; coverage of captions, doubles."""
    from pipelines.data import inspection

    _print("statistics", inspection.compute_stats(_open_dataset(words)), as_json)


@app.command()
@add_dry_run
def split(words: DatasetArgs = None, as_json: AsJson = False) -> None:
    """Print who is on which side: compositions, tracks, rows and hours, and the pieces that training never hears.

    To split otherwise, ingest again with another ingest.held_out_fraction: nothing is encoded twice.
    """
    from pipelines.data import inspection

    sides = inspection.list_splits(_open_dataset(words))
    if as_json:
        typer.echo(json.dumps(sides, indent=2))
        return
    columns = ("split", "compositions", "tracks", "rows", "hours")
    print_table("split", columns, [[side, *(str(sides[side][name]) for name in columns[1:])] for side in sides])
    print_table("held out", ("composition",), [[name] for name in sides["held_out"]["names"]])


@app.command()
@add_dry_run
def quarantine(words: DatasetArgs = None, as_json: AsJson = False) -> None:
    """List the files that ingest could not use: where they are, the stage, and why."""
    from pipelines.data import inspection

    rows = inspection.list_quarantine(_open_dataset(words))
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    columns = ("uri", "stage", "error", "message")
    print_table(f"{len(rows)} bad files", columns, [[row[name] for name in columns] for row in rows])


def _open_dataset(args: list[str] | None) -> Any:
    """The data set that the words mean."""
    from pipelines.data.dataset import open_dataset
    from pipelines.registry.resolve import resolve
    from pipelines.storage.filesystem import absolute_uri
    from pipelines.tracking.client import open_tracker

    config = load_stage_config("dataset", args or [])
    artifact = resolve(
        open_tracker(config.tracking).client, config.references()["dataset"], absolute_uri(config.storage.root)
    )
    return open_dataset(artifact.uri)


def _print(title: str, facts: dict[str, str], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        print_table(title, None, [list(pair) for pair in facts.items()])
