"""`presto dataset show|verify|stats`: what a data set holds, whether it is whole, and whether its figures are true."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipelines.progress import console
from pipelines.words import stage_config

app = typer.Typer(no_args_is_help=True, help="What a data set of latents holds, and whether it is sound.")

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="inputs.dataset=NAME@ALIAS, an id or a URI (presto-dataset@candidate unless told), storage.root=...",
        show_default=False,
    ),
]


@app.command()
def show(words: Words = None) -> None:
    """Print what the manifest says: rows, hours, shapes, codec, text encoder, licences, bad files."""
    from pipelines import inspection

    _print("data set", inspection.described(_opened(words)))


@app.command()
def verify(words: Words = None) -> None:
    """Read every byte again and compare it with the manifest: hashes, rows, shapes, one split a composition."""
    from pipelines import inspection

    found = inspection.verified(_opened(words))
    console.print(
        f"dataset verify: {found.shards} shards, {found.rows} rows, {found.files} other files: all as committed"
    )


@app.command()
def stats(words: Words = None) -> None:
    """Compute from the latents what the manifest claims: mean, deviation, sigma_data; coverage of captions, doubles."""
    from pipelines import inspection

    _print("statistics", inspection.measured(_opened(words)))


def _opened(words: list[str] | None) -> Any:
    """The data set that the words mean."""
    from pipelines.dataset import open_dataset
    from pipelines.storage import absolute
    from pipelines.tracking import open_tracker

    config = stage_config("dataset", words or [])
    artifact = open_tracker(config.tracking).resolve(config.references()["dataset"], absolute(config.storage.root))
    return open_dataset(artifact.uri)


def _print(title: str, facts: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False)
    for name, value in facts.items():
        table.add_row(name, value)
    Console(width=118).print(table)
