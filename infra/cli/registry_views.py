"""What the looking verbs print: versions, one version, its family, differences; as tables or as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.console import console
from pipelines.registry.catalog import Catalog, Version
from pipelines.registry.diff import diff_versions
from pipelines.registry.lineage import (
    render_svg,
    render_tree,
    trace_lineage,
)
from pipelines.registry.names import HASH_DIGITS, RegistryError
from pipelines.registry.promotion_log import PromotionLog
from pipelines.registry.publish import open_promotion_log_folder
from pipelines.registry.search_filter import NUMBERS, parse_filter
from pipelines.tracking.client import open_tracker
from presto_core.config.schema import RegistryStage

WIDTH = 118


def list_newest(config: RegistryStage, name: str, *, limit: int) -> tuple[str, list[Version]]:
    """A title, and the newest versions of one model or of all."""
    catalog = Catalog(open_tracker(config.tracking).client)
    if name and name not in catalog.models:
        known = ", ".join(sorted(catalog.models)) or "none yet"
        raise RegistryError(f"the registry has no model {name!r}; it has {known}")
    found = [
        v for model in ([name] if name else sorted(catalog.models)) for v in catalog.list_newest(model, limit=limit)
    ]
    return f"{name or 'all models'}, the newest {limit} of each", found


def search_versions(config: RegistryStage, query: str, *, order: str, limit: int) -> tuple[str, list[Version]]:
    """A title, and the versions that fit a filter."""
    clauses = parse_filter(query)
    if order and order not in NUMBERS:
        raise RegistryError(f"--order {order!r} is no number to sort by; known: {', '.join(NUMBERS)}")
    versions = Catalog(open_tracker(config.tracking).client).search(clauses, limit=limit, order=order)
    more = f", the first {limit}; raise --limit for more" if len(versions) == limit else ""
    return f"{len(versions)} found: {query or 'all'}{more}", versions


def print_versions(title: str, versions: list[Version], *, as_json: bool) -> None:
    """One line a version."""
    if as_json:
        print_json([version.to_dict() for version in versions])
        return
    columns = ("version", "content", "what", "aliases", "FD", "NFE", "ms", "licence", "created")
    rows = [
        [
            f"{v.name}@v{v.number}",
            v.content[:HASH_DIGITS],
            v.method or v.kind,
            " ".join(v.aliases),
            _format_number(v, "fd", ".2f"),
            _format_number(v, "nfe", ".0f"),
            _format_number(v, "latency_ms", ".0f"),
            ", ".join(v.licences),
            v.created_at[:16],
        ]
        for v in versions
    ]
    _print(title, columns, rows)


def print_version(config: RegistryStage, reference: str, *, as_json: bool) -> None:
    """All that is known of one version."""
    client = open_tracker(config.tracking).client
    catalog = Catalog(client)
    version = catalog.find(reference)
    run = client.get_run(version.mlflow_run)
    parents = {v.artifact_id: v for v in catalog.find_by_artifacts(list(version.parents.values()))}
    made = {
        "commit": run.data.tags.get("mlflow.source.git.commit", ""),
        "environment": run.data.tags.get("presto.environment", ""),
    }
    decisions = [
        asdict(e)
        for e in PromotionLog(open_promotion_log_folder(client, version.name)).read_all()
        if e.version == version.number
    ]
    if as_json:
        print_json(version.to_dict() | {"made_with": made, "params": dict(run.data.params), "decisions": decisions})
        return
    version_info = version.to_dict()
    facts = {key: version_info[key] for key in ("content", "id", "kind", "method", "uri", "created", "bytes")}
    facts |= {
        "aliases": ", ".join(version.aliases),
        "licences": ", ".join(version.licences),
        "MLflow run": run.info.run_id,
    }
    facts |= {f"parent: {role}": _version_label(parents.get(p), p) for role, p in version.parents.items()}
    facts |= {key: f"{value:g}" if isinstance(value, float) else value for key, value in version.measurements.items()}
    facts |= {key: value for key, value in made.items() if value}
    facts |= {f"{e['action']}d {e['when']}": f"by {e['who']}: {e['why']}" for e in decisions}
    _print(f"{version.name}@v{version.number}", None, [[key, str(value)] for key, value in facts.items()])
    console.print("settings: presto registry show --json, or presto registry diff", style="dim")


def print_lineage(config: RegistryStage, reference: str, *, svg: Path | None, as_json: bool) -> None:
    """What a version was made from."""
    catalog = Catalog(open_tracker(config.tracking).client)
    family = trace_lineage(catalog, catalog.find(reference))
    if svg:
        svg.parent.mkdir(parents=True, exist_ok=True)
        svg.write_text(render_svg(family))
        console.print(f"lineage: drawn in {svg}")
    if as_json:
        print_json(family.to_dict())
    else:
        Console(width=WIDTH).print(render_tree(family))


def print_diff(config: RegistryStage, one: str, other: str, *, as_json: bool) -> None:
    """Where two versions differ."""
    client = open_tracker(config.tracking).client
    catalog = Catalog(client)
    first, second = catalog.find(one), catalog.find(other)
    found = diff_versions(client, first, second)
    if as_json:
        print_json({section: {key: list(pair) for key, pair in rows.items()} for section, rows in found.items()})
        return
    titles = ("", *(f"{v.name}@v{v.number}" for v in (first, second)))
    for section, rows in found.items():
        if rows:
            _print(section, titles, [[key, *(_format_value(value) for value in pair)] for key, pair in rows.items()])
    if not any(found.values()):
        console.print(f"{titles[1]} and {titles[2]} do not differ")


def print_json(payload: Any) -> None:
    """On standard output, for a program."""
    print(json.dumps(payload, indent=2))


def _print(title: str, columns: tuple[str, ...] | None, rows: list[list[str]]) -> None:
    from rich.markup import escape

    table = Table(title=escape(title), show_header=columns is not None)
    for number in range(len(rows[0]) if rows else len(columns or ())):
        table.add_column(columns[number] if columns else "", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    Console(width=WIDTH).print(table)


def _format_number(version: Version, name: str, form: str) -> str:
    value = version.measurements.get(name)
    return "" if value is None else format(value, form)


def _version_label(version: Version | None, artifact_id: str) -> str:
    return f"{version.name}@v{version.number} ({artifact_id})" if version else f"{artifact_id}, not registered"


def _format_value(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
