"""Present a sweep's result: a table on the terminal, a self-contained page, JSON, and the winner as a preset."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

import yaml

from pipelines.console import console, print_table
from pipelines.sweep import plots as sweep_plots
from pipelines.sweep.analysis import collect_overrides
from pipelines.tracking.client import HOME
from presto_core.artifacts.durable import make_folders
from presto_core.metrics.table import METRICS

MAX_TRIALS_SHOWN = 12  # rows of the terminal table
TITLES = {
    "importance": "Importance of settings",
    "parallel_coordinates": "Settings and metric",
    "noise_response": "Response to noise distributions",
    "pareto": "Quality and cost",
    "learning": "Learning curves",
}


def to_json(result: dict[str, Any]) -> bytes:
    return json.dumps(result, indent=1).encode()


def write(result: dict[str, Any]) -> list[Path]:
    """Write index.html, sweep.json and winner.yaml under .presto/reports; return their paths."""
    folder = report_folder(result["id"])
    make_folders(folder)
    files = {"sweep.json": to_json(result), "index.html": to_html(result).encode()}
    if result["winner"]:
        files["winner.yaml"] = make_winner_preset(result).encode()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


def report_folder(sweep_id: str) -> Path:
    return HOME / "reports" / f"sweep-{sweep_id}"


def make_plots(result: dict[str, Any]) -> dict[str, bytes]:
    """Return the plots with enough data to draw, by name."""
    images = {
        "importance": sweep_plots.plot_importance(result),
        "parallel_coordinates": sweep_plots.plot_parallel_coordinates(result),
        "noise_response": sweep_plots.plot_noise_response(result),
        "pareto": sweep_plots.plot_pareto(result),
        "learning": sweep_plots.plot_learning_curves(result),
    }
    return {name: png for name, png in images.items() if png}


def make_winner_preset(result: dict[str, Any]) -> str:
    """Return the winner as a preset that holds only the difference."""
    extends = {"extends": result["preset"]} if result["preset"] else {}
    head = f"# Winner of sweep {result['id']}: {result['verdict']['says']}\n"
    return head + yaml.safe_dump(extends | collect_overrides(result), sort_keys=False)


def show(result: dict[str, Any]) -> None:
    """Print the table, the verdict, and how to reproduce the winner."""
    metric = result["metrics"][0]
    print_table(
        f"sweep {result['id']}: {len(result['trials'])} trials",
        _column_names(metric),
        _make_trial_rows(result)[:MAX_TRIALS_SHOWN],
    )
    console.print(result["verdict"]["says"])
    for line in _describe_costs(result):
        console.print(line)
    if result["winner"]:
        console.print(f"reproduce the winner: {result['winner']['command']}", markup=False)
        console.print(f"or as a preset: {report_folder(result['id']) / 'winner.yaml'}", markup=False)
    console.print(f"page with plots: {report_folder(result['id']) / 'index.html'}")


POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">"
)
"""What a browser lets the page do: show its own pictures, run nothing, load nothing."""


def to_html(result: dict[str, Any]) -> str:
    """Return a self-contained page with its plots."""
    metric, shares = result["metrics"][0], result["importance"]
    winner = result["winner"]["command"] if result["winner"] else "none"
    sections = [
        f"<h1>Sweep {html.escape(str(result['id']))} of {html.escape(result['stage'])}</h1>",
        f"<p>{html.escape(result['verdict']['says'])}</p>",
        f"<p>Reproduce the winner:</p><pre>{html.escape(winner)}</pre>",
        "".join(f"<p>{html.escape(line)}</p>" for line in _describe_costs(result)),
        "<h2>Trials</h2>" + _make_html_table(_column_names(metric), _make_trial_rows(result)),
        "<h2>Repeats with other seeds</h2>"
        + _make_html_table(("settings", f"{metric} by seed", "mean", "std"), _make_seed_rows(result)),
        f"<p>{html.escape(_describe_importance(shares))}</p>",
    ]
    sections += [
        f"<h2>{TITLES[name]}</h2>{_make_image_tag(png, TITLES[name])}" for name, png in make_plots(result).items()
    ]
    return f"""<!doctype html><html lang=en><meta charset=utf-8>{POLICY}
<title>Presto sweep {html.escape(str(result["id"]))}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse;font-size:.85rem}}
td,th{{padding:.2rem .6rem;border-bottom:1px solid #ddd;text-align:left}}
img{{max-width:100%}}pre{{white-space:pre-wrap}}</style>{"".join(sections)}</html>"""


def _column_names(metric: str) -> tuple[str, ...]:
    return ("settings", metric, METRICS["blocks_run"].title, "updates", "state")


def _make_trial_rows(result: dict[str, Any]) -> list[list[str]]:
    return [
        [
            " ".join(f"{k}={json.dumps(v)}" for k, v in row["settings"].items()) or "(the settings of the preset)",
            f"{row['value']:.3f}" if row["value"] is not None else "",
            f"{row['last'].get('blocks_run', 0):.0f}",
            str(row["update"]),
            row["state"] + (f": {row['reason']}" if row["reason"] else ""),
        ]
        for row in result["trials"]
    ]


def _make_seed_rows(result: dict[str, Any]) -> list[list[str]]:
    return [
        [
            role,
            ", ".join(f"{v:.3f}" for v in spread["values"]),
            *("" if spread[k] is None else f"{spread[k]:.3f}" for k in ("mean", "std")),
        ]
        for role, spread in result["repeats"].items()
    ]


def _describe_costs(result: dict[str, Any]) -> list[str]:
    saved, overhead = result["saved"], result["overhead"]
    stopping = (
        f"Trials trained {saved['steps_trained']} of {saved['steps_of_all_to_the_end']} steps ({saved['share']:.0%}); "
        f"early stopping saved {saved['trial_seconds_saved'] / 60:.1f} minutes of training."
    )
    beyond = (
        f"In addition to training time, trials took {overhead['other_share']:.0%} for start-up and saving and "
        f"{overhead['validation_share']:.0%} for validation; "
        f"the whole sweep took {overhead['all_share']:.0%} beyond training and validation."
    )
    return [stopping, beyond]


def _describe_importance(shares: dict[str, Any]) -> str:
    return (
        f"Importance is computed at update {shares['update']}, which all {shares['trials']} trials reached; settings "
        "that only some trials have are excluded."
    )


def _make_html_table(columns: tuple[str, ...], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _make_image_tag(png: bytes, alt: str) -> str:
    return f'<img alt="{alt}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
