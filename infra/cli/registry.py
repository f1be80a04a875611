"""`presto registry list|show|search|lineage|diff|pull|push|promote|rollback|verify|gc`: artifacts, found and moved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from infra.cli.options import Preview, add_dry_run
from pipelines.presets.resolve import load_stage_config

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "The register of artifacts: what is there, from what, how good, and which one is in use.\n\n"
        "A version is named presto-generator@champion, @candidate-ls, @v3, @3f9c1a2b (content hash), or by an "
        "artifact's id. Settings: storage.root=…, tracking.uri=…"
    ),
)

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="storage.root=..., tracking.uri=...", show_default=False),
]
Which = Annotated[str, typer.Argument(metavar="VERSION", help="presto-generator@champion, @v3, a hash, an id, ...")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Limit = Annotated[int, typer.Option(help="Most versions to print.", min=1, max=1000)]
Why = Annotated[str, typer.Option("--why", help="The reason; it is recorded.", show_default=False)]


@app.command("list")
@add_dry_run
def list_(
    name: Annotated[str, typer.Argument(help="Model, such as presto-generator; all where it is left out.")] = "",
    settings: Settings = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List models and their newest versions."""
    from infra.cli import registry_views as views

    if "=" in name:  # the name was left out
        name, settings = "", [name, *(settings or [])]
    views.print_versions(*views.list_newest(_load_config(settings), name, limit=limit), as_json=as_json)


@app.command()
@add_dry_run
def show(version: Which, settings: Settings = None, as_json: AsJson = False) -> None:
    """Show a version: from which data, teacher, code and settings, how good and how fast, promoted by whom."""
    from infra.cli import registry_views as views

    views.print_version(_load_config(settings), version, as_json=as_json)


@app.command()
@add_dry_run
def search(
    words: Annotated[list[str], typer.Argument(metavar='"FILTER" [KEY=VALUE]...', help="fd < 3 and method = LS")],
    order: Annotated[str, typer.Option(help="Number to sort by, least first; else the newest come first.")] = "",
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """Find versions: "fd < 3 and latency_ms < 250 and parent = 0123456789abcdef and steps.p_gen.kind = karras".

    Numbers: fd, fd_to_base, mmd, density, coverage, latency_ms, nfe, blocks, speed_up, rows, hours. Texts: method,
    kind, stage, id, run_id, content, parent, licence, embedding, hardware, name; any setting by its dotted key;
    created by date. Comparisons: < <= > >= = != and ~ (contains), joined by and.
    """
    from infra.cli import registry_views as views

    settings = [arg for arg in words if arg.startswith(("storage.", "tracking."))]
    query = " ".join(word for word in words if word not in settings)
    found = views.search_versions(_load_config(settings), query, order=order, limit=limit)
    views.print_versions(*found, as_json=as_json)


@app.command()
@add_dry_run
def lineage(
    version: Which,
    settings: Settings = None,
    svg: Annotated[Path | None, typer.Option(help="Draw it into this file, too.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Draw what a version was made from, up to the data."""
    from infra.cli import registry_views as views

    views.print_lineage(_load_config(settings), version, svg=svg, as_json=as_json)


@app.command()
@add_dry_run
def diff(one: Which, other: Which, settings: Settings = None, as_json: AsJson = False) -> None:
    """Compare two versions: settings, what was measured, parents, code."""
    from infra.cli import registry_views as views

    views.print_diff(_load_config(settings), one, other, as_json=as_json)


@app.command()
def pull(
    version: Which,
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    settings: Settings = None,
    dry_run: Preview = False,
    as_json: AsJson = False,
) -> None:
    """Copy a version into a folder: resumed where it was cut, every hash and file type checked, whole or not there."""
    from infra.cli import registry_commands as moves

    moves.pull(_load_config(settings), version, folder, dry_run=dry_run, as_json=as_json)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Folder of an artifact, such as one that was pulled elsewhere.")],
    settings: Settings = None,
    name: Annotated[str, typer.Option(help="Model to register it under; by its kind unless told.")] = "",
    dry_run: Preview = False,
    as_json: AsJson = False,
) -> None:
    """Store an artifact's folder and register it; refused unless it is exactly what its manifest says."""
    from infra.cli import registry_commands as moves

    moves.push(_load_config(settings), folder, name=name, dry_run=dry_run, as_json=as_json)


@app.command()
def promote(
    version: Which,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PRESET] [KEY=VALUE]...", help="Thresholds: promote.max_fd=..., ...", show_default=False
        ),
    ] = None,
    why: Why = "",
    dry_run: Preview = False,
    as_json: AsJson = False,
) -> None:
    """Make a version champion if it passes the gate: files, licence, health, quality against the champion, latency."""
    from infra.cli import registry_commands as moves

    if not moves.promote(_load_config(words), version, why=why, dry_run=dry_run, as_json=as_json):
        raise typer.Exit(1)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="Model whose champion goes back one step.")] = "presto-generator",
    settings: Settings = None,
    why: Why = "",
    dry_run: Preview = False,
    as_json: AsJson = False,
) -> None:
    """Make the champion before this one champion again."""
    from infra.cli import registry_commands as moves

    if "=" in name:
        name, settings = "presto-generator", [name, *(settings or [])]
    moves.rollback(_load_config(settings), name, why=why, dry_run=dry_run, as_json=as_json)


@app.command()
def verify(
    version: Annotated[str, typer.Argument(metavar="[VERSION]", help="One version; all where it is left out.")] = "",
    settings: Settings = None,
    dry_run: Preview = False,
    as_json: AsJson = False,
) -> None:
    """Read every byte of stored versions again: hashes, file types, and whether champions are who the record says."""
    from infra.cli import registry_commands as moves

    if "=" in version:
        version, settings = "", [version, *(settings or [])]
    if not moves.verify(_load_config(settings), version, dry_run=dry_run, as_json=as_json):
        raise typer.Exit(1)


@app.command()
def gc(
    settings: Settings = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete; without it, only list.")] = False,
    older_than_hours: Annotated[float, typer.Option(help="Leave what was written since.", min=0)] = 24,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list, even with --delete.")] = False,
    as_json: AsJson = False,
) -> None:
    """List artifacts that no version, ancestor or running stage refers to; with --delete, remove them."""
    from infra.cli import registry_commands as moves

    moves.gc(_load_config(settings), delete=delete and not dry_run, older_than_hours=older_than_hours, as_json=as_json)


def _load_config(args: list[str] | None) -> Any:
    return load_stage_config("registry", args or [])
