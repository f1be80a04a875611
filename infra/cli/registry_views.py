"""What the registry commands print: versions, one version, lineage, differences, decisions; as tables or as JSON."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from pipelines.console import console, make_console, print_table, print_text
from pipelines.registry.catalog import Version
from pipelines.registry.lineage import LineageGraph, render_tree
from presto_core.metrics.table import METRICS, Metric
from presto_core.models.pretrained import find_export_of

LISTED_DIGITS = 8  # of the content hash: as many as a reference needs

if TYPE_CHECKING:
    from pipelines.registry.promotion import PromotionDecision


def print_versions(title: str, versions: list[Version], *, as_json: bool) -> None:
    """Print one row per version, as narrow as it can be, and then the licences, which are long and few."""
    if as_json:
        print_json([version.to_dict() for version in versions])
        return
    shown = [METRICS[name] for name in ("mmd", "nfe", "total_ms")]
    table = _make_narrow_table(title)
    for column in ("version", "aliases"):
        table.add_column(column, overflow="fold")
    for column in ("content", "what"):
        table.add_column(column, no_wrap=True)
    for metric in shown:
        table.add_column(metric.title, justify="right", min_width=5)
    table.add_column("created (UTC)", min_width=10)
    for v in versions:
        measured = (_format_measurement(v, metric) for metric in shown)
        created = v.created_at[:16].replace("T", " ")
        cells = (v.label, " ".join(v.aliases), v.content[:LISTED_DIGITS], v.method or v.kind, *measured, created)
        table.add_row(*cells)
    make_console().print(table)
    licences = _group_by_licence(versions)
    if licences:
        table = _make_narrow_table("")
        table.add_column("licence", overflow="fold", ratio=2)
        table.add_column("versions", overflow="fold", ratio=1)
        for licence, labels in licences.items():
            table.add_row(licence, labels)
        make_console().print(table)


def _make_narrow_table(title: str) -> Table:
    return Table(title=title or None, box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))


def _group_by_licence(versions: list[Version]) -> dict[str, str]:
    """Return licence -> the versions that are under it: `presto-generator v1 v2, presto-teacher v1`."""
    groups: dict[str, dict[str, list[int]]] = {}
    for version in versions:
        for licence in version.licences:
            groups.setdefault(licence, {}).setdefault(version.name, []).append(version.number)
    return {
        licence: ", ".join(f"{name} {' '.join(f'v{number}' for number in sorted(n))}" for name, n in models.items())
        for licence, models in sorted(groups.items())
    }


def print_version(
    version: Version,
    code: dict[str, str],
    settings: dict[str, Any],
    parents: dict[str, Version],
    decisions: list[dict[str, Any]],
    *,
    as_json: bool,
) -> None:
    """Print everything that is known of one version.

    Args:
        code: commit, and hash of the packages.
        settings: by dotted key.
        parents: registered versions by artifact id.
        decisions: promotion records that made it champion, or ended that.
    """
    version_info = version.to_dict()
    if as_json:
        params = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
        print_json(version_info | {"made_with": code, "params": params, "decisions": decisions})
        return
    facts = {key: version_info[key] for key in ("content", "id", "kind", "method", "uri", "created", "bytes")}
    facts |= {
        "aliases": ", ".join(version.aliases),
        "licences": ", ".join(version.licences),
        "MLflow run": version.mlflow_run,
    }
    facts |= {f"parent: {role}": _format_parent(parents.get(p), p) for role, p in version.parents.items()}
    facts |= {key: f"{value:g}" if isinstance(value, float) else value for key, value in version.measurements.items()}
    facts |= {key: value for key, value in ({"gate": version.gate} | code).items() if value}
    facts |= {f"{_describe_action(d)} {d['when']}": _format_decision(d) for d in decisions}
    print_table(version.label, None, [[key, str(value)] for key, value in facts.items()])
    console.print("settings: presto registry show --json, or presto registry diff", style="dim")


def _describe_action(decision: dict[str, Any]) -> str:
    if decision["action"] == "promote":
        return "promoted"
    return "champion again" if decision["version"] else "no champion any more"


def print_lineage(graph: LineageGraph, *, as_json: bool) -> None:
    """Print what a version was made from."""
    if as_json:
        print_json(graph.to_dict())
    else:
        make_console().print(render_tree(graph))


def print_diff(one: str, other: str, found: dict[str, dict[str, tuple[Any, Any]]], *, as_json: bool) -> None:
    """Print how two versions differ: section -> what -> values."""
    if as_json:
        print_json({section: {key: list(pair) for key, pair in rows.items()} for section, rows in found.items()})
        return
    for section, rows in found.items():
        if rows:
            cells = [[key, *(_format_value(value) for value in pair)] for key, pair in rows.items()]
            print_table(section, ("", one, other), cells)
    if not any(found.values()):
        console.print(f"{one} and {other} do not differ", markup=False)


def print_decision(decision: PromotionDecision, *, dry_run: bool, as_json: bool) -> None:
    """Print the checks of a promotion and their outcome."""
    from pipelines.registry.promotion_checks import COMPARISONS

    if as_json:
        print_json(decision.to_dict())
        return
    candidate = decision.candidate.label
    rows = [[check.name, check.outcome, check.found, check.wanted] for check in decision.checks]
    print_table(f"{candidate} for champion", ("check", "", "found", "wanted"), rows)
    _print_fixes(decision)
    if not decision.has_passed:
        failed = {check.name for check in decision.checks if check.outcome == "FAIL"}
        hint = "fix what failed, or change the thresholds promote.…"
        hint += ", or promote it all the same with --accept-worse" if failed <= set(COMPARISONS) else ""
        console.print(f"promote: {candidate} is refused, nothing changed; {hint}", style="red", markup=False)
    elif dry_run:
        console.print(f"promote: {candidate} would be promoted", markup=False)
    elif decision.record is None:
        console.print(f"promote: {candidate} is the champion already", markup=False)
    else:
        before = f", in place of v{decision.champion.number}" if decision.champion else ""
        undo = f"presto registry rollback {shlex.quote(decision.candidate.name)} --why …"
        names = ", ".join(decision.list_accepted())
        accepted = f", though it failed: {names} (recorded)" if names else ""
        console.print(f"promote: {candidate} is the champion{before}{accepted}; undo it with: {undo}", markup=False)


def _print_fixes(decision: PromotionDecision) -> None:
    """Print what to do about failed checks, each command once and on one line, to copy."""
    names: dict[str, list[str]] = {}
    for check in decision.checks:
        if not check.passed and check.fix:
            names.setdefault(check.fix, []).append(check.name)
    for fix, failed in names.items():
        console.print(f"{', '.join(failed)}: {fix}", markup=False, highlight=False, soft_wrap=True)


def print_result(message: str, payload: Any, as_json: bool) -> None:
    """Print a message on standard error, or its JSON form on standard output."""
    if as_json:
        print_json(payload)
    else:
        console.print(message, markup=False)


def print_json(payload: Any) -> None:
    """Print JSON on standard output."""
    print_text(json.dumps(payload, indent=2))


def _format_measurement(version: Version, metric: Metric) -> str:
    value = version.measurements.get(metric.name)
    return "" if value is None else metric.format_value(value)


def _format_parent(version: Version | None, artifact_id: str) -> str:
    if version:
        return f"{version.label} ({artifact_id})"
    name = find_export_of(artifact_id)
    return f"{name} of the package ({artifact_id})" if name else f"{artifact_id}, not registered"


def _format_decision(decision: dict[str, Any]) -> str:
    from pipelines.registry.promotion_log import list_accepted

    accepted = list_accepted(decision["checks"])
    return f"by {decision['who']}: {decision['why']}" + (
        f"; though it failed: {', '.join(accepted)}" if accepted else ""
    )


def _format_value(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
