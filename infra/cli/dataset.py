"""`presto dataset show|verify|stats|split|quarantine`: inspect and verify a data set of latents."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from infra.cli.options import AsJson, add_dry_run
from pipelines.console import console, print_table
from pipelines.presets.resolve import load_stage_config

app = typer.Typer(no_args_is_help=True, help="Inspect and verify a data set of latents.")

DatasetArgs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="inputs.dataset=NAME@ALIAS, an id or a URI (default: presto-dataset@candidate), storage.root=...",
        show_default=False,
    ),
]


@app.command()
@add_dry_run
def show(args: DatasetArgs = None, as_json: AsJson = False) -> None:
    """Print the manifest's facts: rows, hours, shapes, codec, text encoder, licences, bad files."""
    dataset = _open_dataset(args)
    from pipelines.data import inspection

    _print("data set", inspection.describe(dataset), as_json)


@app.command()
@add_dry_run
def verify(args: DatasetArgs = None) -> None:
    """Re-read every byte and compare it with the manifest: hashes, rows, shapes, one split per composition."""
    dataset = _open_dataset(args)
    from pipelines.data import inspection

    found = inspection.verify(dataset)
    console.print(
        f"dataset verify: {found.shards} shards, {found.rows} rows, {found.files} other files: all as committed"
    )


@app.command()
@add_dry_run
def stats(args: DatasetArgs = None, as_json: AsJson = False) -> None:
    """Compute statistics from the latents: mean, standard deviation, sigma_data; caption coverage, duplicates."""
    dataset = _open_dataset(args)
    from pipelines.data import inspection

    _print("statistics", inspection.compute_stats(dataset), as_json)


@app.command()
@add_dry_run
def split(args: DatasetArgs = None, as_json: AsJson = False) -> None:
    """Print compositions, tracks, rows and hours per split, and the compositions that are not trained on.

    To change the splits, run ingest again with other values of ingest.validation_fraction and ingest.test_fraction; no
    track is encoded twice.
    """
    dataset = _open_dataset(args)
    from pipelines.data import inspection

    sides = inspection.list_splits(dataset)
    if as_json:
        typer.echo(json.dumps(sides, indent=2))
        return
    columns = ("split", "compositions", "tracks", "rows", "hours")
    print_table("split", columns, [[side, *(str(sides[side][name]) for name in columns[1:])] for side in sides])
    for side in [side for side in sides if side != "train"]:
        print_table(side.replace("_", " "), ("composition",), [[name] for name in sides[side]["names"]])


@app.command()
@add_dry_run
def quarantine(args: DatasetArgs = None, as_json: AsJson = False) -> None:
    """List the files that ingest could not use: URI, phase and error."""
    dataset = _open_dataset(args)
    from pipelines.data import inspection

    rows = inspection.list_quarantine(dataset)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    columns = ("uri", "stage", "error", "message")
    print_table(f"{len(rows)} bad files", columns, [[row[name] for name in columns] for row in rows])


def _open_dataset(args: list[str] | None) -> Any:
    """Open the data set that the settings name."""
    from pipelines.registry.presence import check_references

    config = load_stage_config("dataset", args or [], takes_preset=False)
    check_references(config.tracking, config.references())
    from pipelines.data.dataset import open_dataset
    from pipelines.registry.resolve import resolve
    from pipelines.storage.filesystem import absolute_uri
    from pipelines.tracking.client import open_tracker

    artifact = resolve(
        open_tracker(config.tracking).client, config.references()["dataset"], absolute_uri(config.storage.root)
    )
    return open_dataset(artifact.uri)


def _print(title: str, facts: dict[str, str], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        print_table(title, None, [list(pair) for pair in facts.items()])
