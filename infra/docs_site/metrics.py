"""The page of all reported numbers, from the table of metrics."""

from __future__ import annotations

from infra.docs_site.configuration import escape_cell
from presto_core.metrics.metric import Metric
from presto_core.metrics.table import ROWS

INTRODUCTION = """\
# Metrics

Every number that reports, sweeps, the registry and `presto registry search` know, generated from the table of metrics.
[What they mean](../metrics.md) has the definitions, their sources and the rules of evaluation.
"""
GROUPS = {
    "quality": "Nearness to real music",
    "prompt": "Whether the prompt was followed",
    "audio": "Faults of the sound",
    "cost": "Cost",
}


def describe_metrics() -> str:
    """Return the page as Markdown: a part per group, a row per metric."""
    parts = [INTRODUCTION]
    for group, title in GROUPS.items():
        rows = [_format(metric) for metric in ROWS if metric.group == group]
        parts += [f"## {title}", "", "| name | title | better | in the registry | meaning |", "|---|---|---|---|---|"]
        parts += [*rows, ""]
    return "\n".join(parts)


def _format(metric: Metric) -> str:
    meaning = metric.description + (" (**headline**: what ranks systems)" if metric.headline else "")
    tag = f"`{metric.registry_name}`" if metric.registry_name else ""
    return f"| `{metric.name}` | {escape_cell(metric.title)} | {metric.better} | {tag} | {escape_cell(meaning)} |"
