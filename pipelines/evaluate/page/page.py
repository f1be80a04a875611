"""Renders the page of an evaluation from a report's folder: one HTML file that needs no server and no network."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from pipelines.console import make_printable
from pipelines.evaluate.page.fetch import read_local_report
from pipelines.evaluate.page.fields import (
    find_file,
    read_list,
    read_mapping,
    read_number,
    read_rows,
    read_text,
    read_web_address,
)
from pipelines.evaluate.page.listening import ListeningTable, list_models, make_listening_table
from pipelines.evaluate.page.results import ResultTable, make_tables
from pipelines.evaluate.report import FORMER_ROLES, FORMER_SPLIT_NOTE
from presto_core.artifacts.durable import replace_file
from presto_core.metrics.table import rename_former

PAGE_FILE = "index.html"
SOURCES = Path(__file__).parent
PLOTS = {
    "quality_vs_blocks.png": "Quality against transformer blocks per clip",
    "quality_vs_time.png": "Quality against time per clip",
    "hidden_variance.png": "Variance of activations after each block that runs, by noise level",
}


def render_page(report_folder: Path) -> Path:
    """Write index.html beside the report.json of a folder, and return its path.

    All text of the report is escaped, addresses of files stay inside the folder, and the page's policy lets a browser
    run no script but the page's own.

    Raises:
        ReportError: report.json is missing or damaged.
    """
    result = normalize_report(read_local_report(report_folder))
    return write_page(report_folder / PAGE_FILE, make_html(result, report_folder))


def normalize_report(content: dict[str, Any]) -> dict[str, Any]:
    """The report with the present names of metrics and roles; raises ReportError for a part of the wrong type."""
    systems = [_rename(row) for row in read_rows(content, "systems")]
    controls = [_rename(row) for row in read_rows(content, "controls")]
    floor = rename_former(read_mapping(content, "floor"))
    notes = [str(note) for note in read_list(content, "notes")]
    notes += [FORMER_SPLIT_NOTE] if "format" not in content else []
    return {**content, "systems": systems, "controls": controls, "floor": floor, "notes": notes}


def make_html(result: dict[str, Any], folder: Path) -> str:
    """The page's text; `folder` is where its files are looked for."""
    listening, tables = make_listening_table(result, folder), make_tables(result)
    style = read_source("page.css") + f":root {{ --columns: {len(listening.columns)}; }}\n"
    return render_template(
        "page.html.jinja",
        style=style,
        name=folder.resolve().name,
        summary=describe_report(result),
        notes=list_notes(result, listening, tables),
        tables=tables,
        listening=listening,
        models=[_make_model(role, entry) for role, entry in list_models(result)],
        plots=[(found, title) for name, title in PLOTS.items() if (found := find_file(folder, name, ".png"))],
        facts=list_facts(result),
    )


def read_source(name: str) -> str:
    """The text of a style sheet or script of the pages."""
    return (SOURCES / name).read_text(encoding="utf-8")


def render_template(template: str, *, style: str, **values: Any) -> str:
    """A page's text with its style and script inside: all values are escaped, and the policy allows no other script."""
    # imported by this command alone: Jinja2 takes 50 ms
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(SOURCES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_make_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = read_source("page.js")
    return environment.get_template(template).render(
        **values, style=style, script=script, style_hash=_hash(style), script_hash=_hash(script)
    )


def _make_printable(value: Any) -> Any:
    """A value without control characters, which no page may hold; style and script are the page's own."""
    is_text = isinstance(value, str) and not hasattr(value, "__html__")
    return make_printable(value, keep="\n\t") if is_text else value


def write_page(page: Path, text: str) -> Path:
    """Write a page at once, so that a browser never finds a part of it, and return its path."""
    replace_file(page, text.encode())
    return page


def describe_report(result: dict[str, Any]) -> str:
    """One line below the heading: what was evaluated."""
    parts = [f"{read_text(result, 'samples')} clips per system"] if "samples" in result else []
    seconds = read_number(result, "clip_seconds")
    parts += [] if seconds is None else [f"{seconds:.1f} s each"]
    parts += [f"{read_text(result, 'split').replace('_', '-')} split"] if result.get("split") else []
    parts += [f"seed {read_text(result, 'seed')}"] if "seed" in result else []
    return ", ".join(parts)


def list_notes(result: dict[str, Any], listening: ListeningTable, tables: list[ResultTable]) -> list[str]:
    """Warnings above the table: of the report, of metrics that failed their test, and of files that are missing."""
    notes = [str(note) for note in read_list(result, "notes")]
    for table in tables:
        failed = [column.metric.title for column in table.columns if column.warning]
        if failed:
            notes.append(
                f"marked † on {table.embedder}: {', '.join(failed)} failed the fitness test; do not rank by them"
            )
    if listening.missing:
        notes.append(f"{listening.missing} clips of the report are not shown: their sound is missing from this folder")
    return notes


def list_facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    """What the numbers depend on, as pairs of name and value."""
    hardware, counts = read_mapping(result, "hardware"), read_mapping(result, "embeddings")
    parts = {name: part for name, part in read_mapping(hardware, "parts").items() if isinstance(part, dict)}
    facts = [("hardware", _format_hardware({key: value for key, value in hardware.items() if key != "parts"}))]
    if any(part != parts["network"] for part in parts.values() if "network" in parts):
        facts += [(f"hardware, {name}", _format_hardware(part)) for name, part in parts.items()]
    facts += [(f"embeddings, {name}", str(count)) for name, count in counts.items()]
    for embedder in read_rows(result, "embedders") or [read_mapping(result, "embedding")]:
        size = f", {read_text(embedder, 'dim')} dimensions" if "dim" in embedder else ""
        facts.append(("embedder", f"{read_text(embedder, 'name')} {read_text(embedder, 'digest')}{size}"))
    names = {"decoder_digest": "decoder", "sample_rate_hz": "sample rate, Hz"}
    facts += [(title, read_text(result, key)) for key, title in names.items()]
    level = read_number(result, "target_lufs")
    facts += [] if level is None else [("clips play at", f"{level:.1f} LUFS")]
    facts += [(f"made from, {role}", str(parent)) for role, parent in read_mapping(result, "parents").items()]
    return [(name, value) for name, value in facts if value.strip()]


def _format_hardware(hardware: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in hardware.items())


def _rename(row: dict[str, Any]) -> dict[str, Any]:
    role = read_text(row, "role")
    return rename_former(row) | {"role": FORMER_ROLES.get(role, role)}


def _make_model(role: str, entry: dict[str, Any]) -> dict[str, str]:
    """What the page shows of a model; links that are not web addresses are left out."""
    texts = {key: read_text(entry, key) for key in ("label", "artifact", "version")}
    return {"role": role, **texts} | {key: read_web_address(entry, key) for key in ("version_url", "run_url")}


def _hash(text: str) -> str:
    """The hash of an inline element, by which the page's policy allows it (Content Security Policy level 2)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
