"""`presto dataset show|listen|verify|stats|split|quarantine`: inspect, hear and verify a data set of latents."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.cli.options import AsJson, Preview, add_dry_run
from pipelines.console import console, make_printable, print_table, print_text
from pipelines.presets.resolve import PRESETS, is_override, load_stage_config
from presto_core.config.loader import ConfigError, list_presets

if TYPE_CHECKING:
    from pipelines.evaluate.dataset_clips import DatasetRow

app = typer.Typer(no_args_is_help=True, help="Inspect, hear and verify a data set of latents.")

DatasetArgs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[DATASET] [KEY=VALUE]...",
        help="A data set as NAME@ALIAS, id, path or URI, the same as inputs.dataset=... (default: "
        "presto-dataset@candidate); then storage.root=...",
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
    """Print compositions, tracks, rows and hours per split, and the compositions that are not in the train split.

    To change the splits, run ingest again with other values of ingest.validation_fraction and ingest.test_fraction; no
    track is encoded twice.
    """
    dataset = _open_dataset(args)
    from pipelines.data import inspection

    sides = inspection.list_splits(dataset)
    if as_json:
        print_text(json.dumps(sides, indent=2))
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
        print_text(json.dumps(rows, indent=2))
        return
    columns = ("uri", "stage", "error", "message")
    print_table(f"{len(rows)} bad files", columns, [[row[name] for name in columns] for row in rows])


@app.command()
def listen(
    args: DatasetArgs = None,
    rows: Annotated[int, typer.Option(min=1, max=500, help="Number of rows to draw.")] = 12,
    split: Annotated[
        str, typer.Option(metavar="train|validation|test", help="Split to draw from.", show_default=True)
    ] = "train",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw: another seed draws other rows.")] = 0,
    output: Annotated[
        str, typer.Option(help="Folder for the page; default: one below .presto/listen/ for data set, split and seed.")
    ] = "",
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    as_json: AsJson = False,
    dry_run: Preview = False,
) -> None:
    """Hear what a data set contains: decode some rows, and show them with caption, tempo, key and licence."""
    from pipelines.evaluate.page import dataset_page
    from pipelines.evaluate.page.page import PAGE_FILE
    from presto_core.models.recorded_components import OwnFolders

    dataset = _open_dataset(args)
    if split not in dataset.splits:
        raise ConfigError(f"--split {split} is none of this data set's splits; choose {' or '.join(dataset.splits)}")
    folder = dataset_page.choose_folder(dataset, split, seed=seed, output=output)
    page = (folder / PAGE_FILE).resolve()
    if dry_run:
        console.print(f"dataset listen: would decode up to {rows} {split} rows and write {page}", markup=False)
        return
    own = OwnFolders.from_config(_load_config(args).storage)
    clips = dataset_page.make_page(dataset, folder, split, count=rows, seed=seed, own=own)
    if as_json:
        print_text(json.dumps([clip.row.to_dict() for clip in clips], indent=2))
        console.print(f"dataset listen: {page}", markup=False)
    else:
        title = dataset_page.describe_draw(dataset, clips, split=split, seed=seed)
        columns = ("", "caption", "tempo", "key", "track")
        print_table(title, columns, [_format_clip(number, clip.row) for number, clip in enumerate(clips, 1)])
        for licence, count in Counter(str(c.row.track_info.get("licence") or "not stated") for c in clips).items():
            console.print(f"licence of {count}: {make_printable(licence)}", markup=False)
        print_text(str(page))
    if open_browser:
        import webbrowser

        if not webbrowser.open(page.as_uri()):
            console.print("dataset listen: no browser was found on this machine; open the page yourself")


def _format_clip(number: int, row: DatasetRow) -> list[str]:
    tempo = "" if row.tempo_bpm is None else f"{row.tempo_bpm:g}"
    return [str(number), row.caption, tempo, row.key or "", row.track]


def _open_dataset(args: list[str] | None) -> Any:
    """Open the data set that the arguments name; MLflow is asked only for a registered name."""
    from pipelines.registry.presence import check_references

    config = _load_config(args)
    check_references(config.tracking, config.references())
    from pipelines.data.dataset import open_dataset
    from pipelines.registry.names import parse_reference
    from pipelines.registry.resolve import resolve
    from pipelines.storage.filesystem import absolute_uri
    from pipelines.tracking.client import open_tracker

    reference = config.references()["dataset"]
    client = open_tracker(config.tracking).client if parse_reference(reference) else None
    return open_dataset(resolve(client, reference, absolute_uri(config.storage.root)).uri)


def _load_config(args: list[str] | None) -> Any:
    return load_stage_config("dataset", _name_dataset(args or []), takes_preset=False)


def _name_dataset(args: list[str]) -> list[str]:
    """Turn a data set that is named without a key into a setting; a preset stays one."""
    if not args or is_override(args[0]):
        return args
    first, *others = args
    if first in list_presets(PRESETS) or first.endswith((".yaml", ".yml")):
        return args
    is_folder = "/" not in first and (Path(first) / "manifest.json").is_file()
    return [f"inputs.dataset={Path(first).absolute() if is_folder else first}", *others]


def _print(title: str, facts: dict[str, str], as_json: bool) -> None:
    if as_json:
        print_text(json.dumps(facts, indent=2))
    else:
        print_table(title, None, [list(pair) for pair in facts.items()])
