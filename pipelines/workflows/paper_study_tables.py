"""The tables of `presto study paper`: claims with verdicts, and the systems of each group; Markdown and terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from pipelines.console import make_console
from presto_core.metrics.table import METRICS

COLUMNS = (
    "mmd", "precision", "recall", "density", "coverage", "tempo_hits", "sample_distance", "loss_at_budget",
    "blocks_run",
)  # fmt: skip
LOSS_TITLE = "loss at budget"


def to_markdown(result: dict[str, Any]) -> str:
    """Format the results for the docs: what the paper reports beside what was measured here."""
    lines = [_describe_study(result)]
    for teacher in result["teachers"]:
        lines += ["", f"## Teacher {teacher['reference']} ({teacher['id']})", "", *_format_claims(teacher["claims"])]
        lines += ["", "### Teacher", "", *_format_systems(teacher["samplers"], teacher["floor"])]
        for group in teacher["groups"]:
            lines += ["", f"### {group['title']}", "", *_format_systems(group["systems"], teacher["floor"])]
    if len(result["teachers"]) > 1:
        lines += ["", "## All teachers", "", "| claim | the paper | verdict | by teacher |", "|---|---|---|---|"]
        lines += [
            f"| {c['text']} | {c['paper']} | {c['verdict']} | {', '.join(c['by_teacher'])} |" for c in result["claims"]
        ]
    lines += [f"\nFailed: {cell}: {reason}" for cell, reason in result["failures"].items()]
    return "\n".join(lines) + "\n"


def _describe_study(result: dict[str, Any]) -> str:
    return (
        f"Seeds: {result['seeds']}. Clips: {result['clips']} on the test split, which is reported; "
        f"{result['validation_clips']} on the validation split, which chooses. Intervals: {result['confidence']:.0%}, "
        "over tracks, reference and seeds; one seed decides no claim. ± is the standard deviation over seeds."
    )


def print_claims(result: dict[str, Any]) -> None:
    """Print the claims of each teacher with their verdicts."""
    console = make_console()
    for teacher in result["teachers"]:
        table = Table(title=f"claims of the paper on {teacher['reference']}")
        for name in ("claim", "the paper", "contrast", "verdict"):
            table.add_column(name, overflow="fold")
        for claim in teacher["claims"]:
            table.add_row(claim["text"], claim["paper"], _format_contrast(claim), claim["verdict"])
        console.print(table)


def _format_claims(claims: list[dict[str, Any]]) -> list[str]:
    lines = ["| claim | the paper | contrast | each seed | verdict |", "|---|---|---:|---:|---|"]
    for claim in claims:
        seeds = ", ".join(_format_value(claim["metric"], value) for value in claim.get("by_seed", ()))
        lines.append(
            f"| {claim['text']} | {claim['paper']} | {_format_contrast(claim)} | {seeds} | {claim['verdict']} |"
        )
    return lines


def _format_contrast(claim: dict[str, Any]) -> str:
    """Value and interval: `-3.1 [-4.0, -2.2]`."""
    if "value" not in claim:
        return ""
    value = _format_value(claim["metric"], claim["value"])
    if not claim["interval"]:
        return value
    low, high = (_format_value(claim["metric"], end) for end in claim["interval"])
    return f"{value} [{low}, {high}]"


def _format_systems(systems: list[dict[str, Any]], floor: dict[str, Any]) -> list[str]:
    columns = [name for name in COLUMNS if any(name in system for system in systems)]
    titles = [METRICS[name].title if name in METRICS else LOSS_TITLE for name in columns]
    lines = [
        f"| system | seeds | {' | '.join(titles)} | MMD, validation |",
        "|---|---:|" + "---:|" * (len(columns) + 1),
    ]
    for system in systems:
        cells = [_format_spread(name, system.get(name)) for name in columns]
        cells.append(_format_spread("mmd", system.get("validation")))
        lines.append(f"| {system['key']} | {len(system['artifacts'])} | {' | '.join(cells)} |")
    cells = [_format_value(name, floor[name]) if name in floor and name != "blocks_run" else "" for name in columns]
    return [*lines, f"| real music, train | | {' | '.join(cells)} | |"]


def _format_spread(name: str, found: dict[str, Any] | None) -> str:
    """Mean and standard deviation over seeds."""
    if found is None:
        return ""
    std = "" if found["std"] is None else f" ± {_format_value(name, found['std'])}"
    return _format_value(name, found["mean"]) + std


def _format_value(name: str, value: float) -> str:
    if name not in METRICS:
        return f"{value:.4f}"
    metric = METRICS[name]
    return f"{value * metric.scale:{metric.format}}"
