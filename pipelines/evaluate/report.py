"""An evaluation's result on the terminal: a table with the floor below it, what its numbers mean, and warnings."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from pipelines.console import make_console
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.manifest import Artifact
from presto_core.artifacts.store import read_file
from presto_core.metrics.metric import Metric
from presto_core.metrics.table import METRICS, headline_metric, rename_former

REPORT_FILE = "report.json"

COLUMNS = [metric for metric in METRICS.values() if metric.column]
"""The metrics that tables show, behind the system's name."""
WIDE = 112  # columns of text that all of them need
NARROW_COLUMNS = [m for m in COLUMNS if (m.group == "quality" and m.name != "fd_inf") or m.name == "total_ms"]
"""Those of a narrower terminal: the headline, fidelity and diversity, and time."""
FORMER_ROLES = {"base": "teacher", "student": "generator"}
FORMER_SPLIT_NOTE = "this report was made before data sets had a test split: the rows it reports may also have chosen"


def read_report(artifact: Artifact) -> dict[str, Any]:
    """What report.json holds, with the present names of metrics and roles; raises StoreError."""
    content = json.loads(read_file(open_folder(artifact.uri), REPORT_FILE, artifact.manifest))
    return complete_report(content)


def complete_report(content: dict[str, Any]) -> dict[str, Any]:
    """The content of any report.json in the form of today's: names, and empty lists for what it lacks."""
    rows = [rename_former(row) for row in content["systems"]]
    systems = [row | {"role": FORMER_ROLES.get(row["role"], row["role"])} for row in rows]
    former = {
        "controls": [],
        "notes": [FORMER_SPLIT_NOTE],
        "split": "held_out",
        "prompts": [],
        "clips": [],
        "models": {},
    }
    return former | content | {"systems": systems, "floor": rename_former(content["floor"])}


def print_table(result: dict[str, Any]) -> None:
    """The results table on standard output, then what it means, then warnings."""
    console = make_console()
    table = Table(title=f"quality on the {result['split']} split, and speed", collapse_padding=True)
    columns = NARROW_COLUMNS if console.is_terminal and console.width < WIDE else COLUMNS
    table.add_column("system")
    for metric in columns:
        table.add_column(metric.title, justify="right", overflow="fold")
    for row in result["systems"]:
        style = "bold" if row.get("chosen") and row.get("validation") else ""
        table.add_row(row["name"], *_format_row(row, result, columns), style=style)
    table.add_row(
        result["floor"].get("name", "real music"), *_format_row(result["floor"], result, columns), style="dim"
    )
    console.print(table)
    if len(columns) < len(COLUMNS):
        left_out = ", ".join(metric.title for metric in COLUMNS if metric not in columns)
        console.print(f"not shown below {WIDE} columns: {left_out}", style="dim", markup=False, highlight=False)
    width = max(console.width, 80)
    console.print(textwrap.fill(format_table_notes(result, columns), width), markup=False, highlight=False)
    for note in [*result["notes"], *list_unfit_metrics(result)]:
        console.print(textwrap.fill(f"note: {note}", width), style="yellow", markup=False, highlight=False)


def format_table_notes(result: dict[str, Any], shown: Sequence[Metric] = COLUMNS) -> str:
    """What the numbers mean, in a few lines."""
    hardware, counts = result["hardware"], result["embeddings"]
    columns = "; ".join(f"{metric.title}: {metric.description}" for metric in shown)
    was_validated = any(row.get("validation") for row in result["systems"])
    chosen = "bold: each model's best by the validation split; " if was_validated else ""
    unfit = list_unfit_columns(result)
    unfit_text = f"†: does not pass its fitness test on this music ({', '.join(unfit)}), see below; " if unfit else ""
    return (
        f"{chosen}{unfit_text}{columns}. "
        f"Distances on {result['embedding']['name']} ({result['embedding']['digest'][:12]}), {counts['generated']} "
        f"patches of {result['samples']} clips against {counts['reference']} of real music, all decoded by "
        f"{result['decoder_digest'][:12]}; real music, train: clips of the training split, the floor. Time of a "
        f"{result['clip_seconds']:.1f} s clip on {hardware['device']}, {hardware['threads']} thread(s). "
        f"Seed {result['seed']}. ± is half of the {result.get('confidence', 0.95):.0%} interval over tracks."
    )


def list_unfit_metrics(result: Mapping[str, Any]) -> list[str]:
    """One line per metric that fails its fitness test on the first embedding, with the values that show it."""
    fitness = result.get("fitness", {}).get(result["embedding"]["name"], {})
    return [
        f"{METRICS[name].title} is not fit for this music: {verdict['reason']}"
        for name, verdict in fitness.items()
        if name in METRICS and not verdict["fit"]
    ]


def list_unfit_columns(result: Mapping[str, Any]) -> list[str]:
    """Titles of the columns whose metric fails the fitness test on the first embedding."""
    fitness = result.get("fitness", {}).get(result["embedding"]["name"], {})
    return [metric.title for metric in COLUMNS if not fitness.get(metric.name, {"fit": True})["fit"]]


def _format_row(values: dict[str, Any], result: dict[str, Any], columns: Sequence[Metric] = COLUMNS) -> list[str]:
    """Cells behind the name: empty where a metric does not apply, as sampling to real music."""
    unfit = list_unfit_columns(result)
    return [
        _format_cell(metric.name, values) + ("†" if metric.title in unfit else "") if metric.name in values else ""
        for metric in columns
    ]


def _format_cell(name: str, values: Mapping[str, Any]) -> str:
    metric = METRICS[name]
    text = metric.format_value(values[name])
    ends = values.get("intervals", {}).get(name)
    if ends and name == headline_metric().name:
        return f"{text} ±{(ends[1] - ends[0]) / 2 * metric.scale:{metric.format}}"
    return text
