"""An evaluation's result for people: a table on the terminal, and a page with plots and sounds."""

from __future__ import annotations

import html
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.manifest import Artifact
from presto_core.artifacts.store import read_file
from presto_core.metrics.table import METRICS, rename_former

REPORT_FILE = "report.json"

COLUMNS = [metric for metric in METRICS.values() if metric.column]
"""The metrics that tables show, behind the system's name."""
FORMER_ROLES = {"base": "teacher", "student": "generator"}


def read_report(artifact: Artifact) -> dict[str, Any]:
    """What report.json holds, with the present names of metrics and roles; raises StoreError."""
    result: dict[str, Any] = json.loads(read_file(open_folder(artifact.uri), REPORT_FILE, artifact.manifest))
    rows = [rename_former(row) for row in result["systems"]]
    result["systems"] = [row | {"role": FORMER_ROLES.get(row["role"], row["role"])} for row in rows]
    return result


def print_table(result: dict[str, Any]) -> None:
    """The results table on standard output."""
    table = Table(
        title="quality and speed on held-out music",
        collapse_padding=True,
        caption=format_table_notes(result),
        caption_justify="left",
    )
    table.add_column("system", no_wrap=True)
    for metric in COLUMNS:
        table.add_column(metric.title, justify="right")
    for row in result["systems"]:
        table.add_row(row["name"], *_format_row(row), style="bold" if row["role"] != "teacher" else "")
    table.add_row("real music", *_format_row(result["floor"]), style="dim")
    Console(width=118).print(table)


def format_table_notes(result: dict[str, Any]) -> str:
    """What the numbers mean, in a few lines."""
    hardware, counts = result["hardware"], result["embeddings"]
    columns = "; ".join(f"{metric.title}: {metric.description}" for metric in COLUMNS)
    return (
        f"{columns}. Distances on {result['embedding']['name']} ({result['embedding']['digest'][:12]}), "
        f"{counts['generated']} patches of {result['samples']} clips against {counts['reference']} held-out ones, all "
        f"decoded by {result['decoder_digest'][:12]}; the teacher's samples are those of "
        f"{result['systems'][0]['name']}; real music: clips of the training split, the noise floor. "
        f"Latency of a {result['clip_seconds']:.1f} s clip on {hardware['device']}, {hardware['threads']} thread(s). "
        f"Seed {result['seed']}."
    )


def to_html(result: dict[str, Any], sounds: list[str]) -> str:
    """A page that stands alone beside its plots and sounds."""
    head = "".join(f"<th>{html.escape(title)}</th>" for title in ("system", *(metric.title for metric in COLUMNS)))
    body = "".join(
        f"<tr class='{html.escape(row['role'])}'>" + _make_cells([row["name"], *_format_row(row)]) + "</tr>"
        for row in result["systems"]
    )
    floor = _make_cells(_format_row(result["floor"]))
    players = "".join(
        f"<tr><td>{html.escape(s.removeprefix('audio/').removesuffix('.wav'))}</td>"
        f"<td><audio controls preload=none src='{html.escape(s)}'></audio></td></tr>"
        for s in sounds
    )
    return f"""<!doctype html><html lang=en><meta charset=utf-8><title>Presto evaluation</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse}}td,th{{padding:.25rem .75rem;text-align:right;border-bottom:1px solid #ddd}}
td:first-child,th:first-child{{text-align:left}}tr.generator,tr.layers{{font-weight:600}}img{{max-width:100%}}</style>
<h1>Presto evaluation</h1><table><tr>{head}</tr>{body}<tr><td>real music (noise floor)</td>{floor}</tr></table>
<p>{html.escape(format_table_notes(result))}</p><img src=quality_vs_blocks.png alt="quality against blocks run">
<h2>Activations by depth</h2><p>Variance after each block that runs, by noise level. In the paper's model the last
block stands out, so Presto-L keeps it where ASE does not.</p>
<img src=hidden_variance.png alt="variance of activations by block and noise level">
<h2>Listen</h2><table>{players}</table></html>"""


def _format_row(values: dict[str, Any]) -> list[str]:
    """Cells behind the name: empty where a metric does not apply, as sampling to real music."""
    return [metric.format_value(values[metric.name]) if metric.name in values else "" for metric in COLUMNS]


def _make_cells(texts: list[str]) -> str:
    return "".join(f"<td>{html.escape(text)}</td>" for text in texts)
