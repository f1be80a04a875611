"""An evaluation's result for people: a table on the terminal, a page with plots and sounds."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("system", lambda r: r["name"]),
    ("NFE", lambda r: str(r["nfe"])),
    ("blocks", lambda r: str(r["blocks_run"])),
    ("FD", lambda r: f"{r['fd']:.2f}"),
    ("FD to base", lambda r: f"{r['fd_to_base']:.2f}"),
    ("MMD", lambda r: f"{r['mmd'] * 1e3:.1f}e-3"),
    ("density", lambda r: f"{r['density']:.2f}"),
    ("coverage", lambda r: f"{r['coverage']:.2f}"),
    ("ms", lambda r: f"{r['sampling_ms']:.0f}"),
    ("speed-up", lambda r: f"{r['speed_up']:.1f}x"),
    ("ms in all", lambda r: f"{r['total_ms']:.0f}"),
)


def print_table(result: dict[str, Any]) -> None:
    """The results table on standard output."""
    table = Table(
        title="quality and speed on held-out music", caption=format_table_notes(result), caption_justify="left"
    )
    for name, _ in COLUMNS:
        first = name == "system"
        table.add_column(name, justify="left" if first else "right", no_wrap=first)
    for row in result["systems"]:
        table.add_row(*(cell(row) for _, cell in COLUMNS), style="bold" if row["role"] != "base" else "")
    table.add_row("real music", *_format_noise_floor_row(result["floor"]), style="dim")
    Console(width=118).print(table)


def format_table_notes(result: dict[str, Any]) -> str:
    """What the numbers mean, in a few lines."""
    hardware, counts = result["hardware"], result["embeddings"]
    return (
        f"NFE: network evaluations of a clip; blocks: transformer blocks it goes through. "
        f"FD: Fréchet distance, MMD: squared maximum mean discrepancy (RBF), on {result['embedding']['name']} "
        f"({result['embedding']['digest'][:12]}), {counts['generated']} patches of {result['samples']} clips against "
        f"{counts['reference']} held-out ones, all decoded by {result['decoder_digest'][:12]}; "
        f"FD to base: the same against the samples of {result['systems'][0]['name']}; "
        f"real music: clips of the training split, the noise floor. "
        f"Latency (in all: with text and decoding): one {result['clip_seconds']:.1f} s clip, batch 1, median, "
        f"on {hardware['device']}, {hardware['threads']} thread(s). Seed {result['seed']}."
    )


def to_html(result: dict[str, Any], sounds: list[str]) -> str:
    """A page that stands alone beside its plots and sounds."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name, _ in COLUMNS)
    body = "".join(
        f"<tr class='{html.escape(row['role'])}'>"
        + "".join(f"<td>{html.escape(cell(row))}</td>" for _, cell in COLUMNS)
        + "</tr>"
        for row in result["systems"]
    )
    floor = "".join(f"<td>{cell}</td>" for cell in _format_noise_floor_row(result["floor"]))
    players = "".join(
        f"<tr><td>{html.escape(s.removeprefix('audio/').removesuffix('.wav'))}</td>"
        f"<td><audio controls preload=none src='{html.escape(s)}'></audio></td></tr>"
        for s in sounds
    )
    return f"""<!doctype html><html lang=en><meta charset=utf-8><title>Presto evaluation</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse}}td,th{{padding:.25rem .75rem;text-align:right;border-bottom:1px solid #ddd}}
td:first-child,th:first-child{{text-align:left}}tr.student,tr.layers{{font-weight:600}}img{{max-width:100%}}</style>
<h1>Presto evaluation</h1><table><tr>{head}</tr>{body}<tr><td>real music (noise floor)</td>{floor}</tr></table>
<p>{html.escape(format_table_notes(result))}</p><img src=quality_vs_blocks.png alt="quality against blocks run">
<h2>Activations by depth</h2><p>Variance after each block that runs, by noise level. In the paper's model the last
block stands out, so Presto-L keeps it where ASE does not.</p>
<img src=hidden_variance.png alt="variance of activations by block and noise level">
<h2>Listen</h2><table>{players}</table></html>"""


def _format_noise_floor_row(floor: dict[str, float]) -> list[str]:
    """The noise floor's row behind its name: empty where a column is about sampling."""
    quality = {"FD": f"{floor['fd']:.2f}", "MMD": f"{floor['mmd'] * 1e3:.1f}e-3"}
    quality |= {name: f"{floor[name]:.2f}" for name in ("density", "coverage")}
    return [quality.get(name, "") for name, _ in COLUMNS[1:]]
