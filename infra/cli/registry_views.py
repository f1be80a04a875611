"""What the registry commands print: versions, one version, lineage, differences, decisions; as tables or as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipelines.console import console, make_console, print_table
from pipelines.registry.catalog import Version
from pipelines.registry.lineage import LineageGraph, render_tree
from pipelines.registry.names import HASH_DIGITS
from presto_core.metrics.table import METRICS, Metric
from presto_core.models.pretrained import find_export_of

if TYPE_CHECKING:
    from pipelines.registry.promotion import PromotionDecision


def print_versions(title: str, versions: list[Version], *, as_json: bool) -> None:
    """Print one line per version."""
    if as_json:
        print_json([version.to_dict() for version in versions])
        return
    shown = [METRICS[name] for name in ("mmd", "nfe", "total_ms")]
    columns = ("version", "content", "what", "aliases", *(metric.title for metric in shown), "licence", "created")
    rows = [
        [
            v.label,
            v.content[:HASH_DIGITS],
            v.method or v.kind,
            " ".join(v.aliases),
            *(_format_measurement(v, metric) for metric in shown),
            ", ".join(v.licences),
            v.created_at[:16],
        ]
        for v in versions
    ]
    print_table(title, columns, rows)


def print_version(
    version: Version, run: Any, parents: dict[str, Version], decisions: list[dict[str, Any]], *, as_json: bool
) -> None:
    """Print everything that is known of one version.

    Args:
        run: data of its MLflow run: tags and params.
        parents: registered versions by artifact id.
        decisions: promotion records that made it champion.
    """
    made = {
        "commit": run.tags.get("mlflow.source.git.commit", ""),
        "environment": run.tags.get("presto.environment", ""),
    }
    version_info = version.to_dict()
    if as_json:
        print_json(version_info | {"made_with": made, "params": dict(run.params), "decisions": decisions})
        return
    facts = {key: version_info[key] for key in ("content", "id", "kind", "method", "uri", "created", "bytes")}
    facts |= {
        "aliases": ", ".join(version.aliases),
        "licences": ", ".join(version.licences),
        "MLflow run": version.mlflow_run,
    }
    facts |= {f"parent: {role}": _format_parent(parents.get(p), p) for role, p in version.parents.items()}
    facts |= {key: f"{value:g}" if isinstance(value, float) else value for key, value in version.measurements.items()}
    facts |= {key: value for key, value in ({"gate": version.gate} | made).items() if value}
    facts |= {f"{d['action']}d {d['when']}": _format_decision(d) for d in decisions}
    print_table(version.label, None, [[key, str(value)] for key, value in facts.items()])
    console.print("settings: presto registry show --json, or presto registry diff", style="dim")


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
        console.print(f"{one} and {other} do not differ")


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
        console.print(f"promote: {candidate} is refused, nothing changed; {hint}", style="red")
    elif dry_run:
        console.print(f"promote: {candidate} would be promoted")
    elif decision.record is None:
        console.print(f"promote: {candidate} is the champion already")
    else:
        before = f", in place of v{decision.champion.number}" if decision.champion else ""
        names = ", ".join(decision.list_accepted())
        accepted = f", though it failed: {names} (recorded)" if names else ""
        console.print(f"promote: {candidate} is the champion{before}{accepted}; undo it with: presto registry rollback")


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
    print(json.dumps(payload, indent=2))


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
