"""`presto registry`: find, inspect and compare artifact versions; `registry_changes` has the commands that change."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from infra.cli import registry_changes, registry_relocate, registry_views
from infra.cli.options import AsJson, RegistryArgs, VersionName, add_dry_run
from infra.cli.registry_access import open_catalog, print_empty, print_skipped, try_open_catalog
from pipelines.console import console
from pipelines.registry.names import RegistryError
from presto_core.artifacts.durable import make_folders

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "The model registry: list artifact versions, their lineage and quality, and which one is in use.\n\n"
        "Name a version as presto-generator@champion, @candidate-ls, @v3, @3f9c1a2b (content hash), or by an "
        "artifact's id. Settings: storage.root=…, tracking.uri=…"
    ),
)
Limit = Annotated[int, typer.Option(help="Maximum number of versions to print.", min=1, max=1000)]


@app.command("list")
@add_dry_run
def list_(
    name: Annotated[str, typer.Argument(help="Model, such as presto-generator; default: all models.")] = "",
    settings: RegistryArgs = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List models and their newest versions."""
    if "=" in name:  # NAME is left out
        name, settings = "", [name, *(settings or [])]
    catalog = try_open_catalog(settings, as_json=as_json)
    if catalog is None:
        return
    if name and name not in catalog.all_models:
        known = ", ".join(sorted(catalog.models)) or "none yet"
        raise RegistryError(f"the registry has no model {name!r}; registered models: {known}")
    models = [name] if name else sorted(catalog.models)
    found = [version for model in models for version in catalog.list_newest(model, limit=limit)]
    print_skipped(catalog)
    if found or name:
        registry_views.print_versions(f"{name or 'all models'}, the newest {limit} of each", found, as_json=as_json)
    else:
        print_empty(settings, as_json=as_json)


@app.command()
@add_dry_run
def show(version: VersionName, settings: RegistryArgs = None, as_json: AsJson = False) -> None:
    """Show a version's data, teacher, code, settings, quality and latency, and who promoted it."""
    catalog = open_catalog(settings)
    from pipelines.registry.promotion_log import read_decisions
    from pipelines.registry.publish import find_promotion_log_folder
    from pipelines.registry.run_facts import read_code
    from pipelines.registry.version_settings import read_settings

    found = catalog.find(version)
    code = read_code(catalog.client, found)
    (params,) = read_settings(catalog.client, [found])
    parents = {v.artifact_id: v for v in catalog.find_by_artifacts(list(found.parents.values()))}
    log_folder = find_promotion_log_folder(catalog.client, found.name)
    decisions = [asdict(r) for r in read_decisions(log_folder, found.number)] if log_folder else []
    registry_views.print_version(found, code, params, parents, decisions, as_json=as_json)


@app.command()
@add_dry_run
def search(
    args: Annotated[list[str], typer.Argument(metavar='"FILTER" [KEY=VALUE]...', help="mmd < 0.1 and method = LS")],
    order: Annotated[str, typer.Option(help="Number to sort by, smallest first; default: newest first.")] = "",
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """Find versions: "mmd < 0.1 and latency_ms < 250 and parent = 0123456789abcdef and steps.p_gen.kind = karras".

    Numbers: fd, fd_to_teacher, mmd, density, coverage, latency_ms, nfe, blocks_run, speed_up, rows, hours. Texts:
    method, kind, stage, id, run_id, content, parent, licence, embedding, hardware, name; any setting by its dotted key,
    a number as a number (5e-5 is 0.00005); created by day or minute, in UTC. Comparisons: < <= > >= = != and ~
    (contains), joined by and.
    """
    from pipelines.registry.search import search_versions
    from pipelines.registry.search_filter import NUMBERS, parse_filter

    settings = [arg for arg in args if arg.startswith(("storage.", "tracking."))]
    query = " ".join(arg for arg in args if arg not in settings)
    clauses = parse_filter(query)
    if order and order not in NUMBERS:
        raise RegistryError(f"--order {order!r} is not a number to sort by; use one of {', '.join(NUMBERS)}")
    reads_runs = any(clause.is_setting for clause in clauses)
    catalog = try_open_catalog(settings, as_json=as_json, reads_runs=reads_runs)
    if catalog is None:
        return
    found = search_versions(catalog, clauses, limit=limit, order=order)
    print_skipped(catalog)
    more = f", the first {limit}; raise --limit for more" if len(found) == limit else ""
    registry_views.print_versions(f"{len(found)} found: {query or 'all'}{more}", found, as_json=as_json)


@app.command()
@add_dry_run
def lineage(
    version: VersionName,
    settings: RegistryArgs = None,
    svg: Annotated[Path | None, typer.Option(help="Also write the graph to this SVG file.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Draw the artifacts that a version was made from, up to the data."""
    from pipelines.registry.lineage import render_svg, trace_lineage

    catalog = open_catalog(settings)
    graph = trace_lineage(catalog, catalog.find(version))
    if svg:
        try:
            make_folders(svg.parent)
            svg.write_text(render_svg(graph), encoding="utf-8")
        except OSError as error:
            raise RegistryError(f"--svg={svg} cannot be written: {error.strerror}; name another file") from None
        console.print(f"lineage: written to {svg}", markup=False)
    registry_views.print_lineage(graph, as_json=as_json)


@app.command()
@add_dry_run
def diff(one: VersionName, other: VersionName, settings: RegistryArgs = None, as_json: AsJson = False) -> None:
    """Compare two versions: settings, measurements, parents, code."""
    from pipelines.registry.diff import diff_versions

    catalog = open_catalog(settings)
    first, second = catalog.find(one), catalog.find(other)
    found = diff_versions(catalog.client, first, second)
    registry_views.print_diff(first.label, second.label, found, as_json=as_json)


for command in (*registry_changes.COMMANDS, registry_relocate.relocate):
    app.command()(command)
