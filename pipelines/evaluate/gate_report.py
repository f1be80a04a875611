"""The result of a teacher's gate: a table for terminals of 80 columns, and a figure of its denoising error."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from pipelines.evaluate.plots import make_figure, to_png
from presto_core.metrics.denoising import DenoisingComparison
from presto_core.metrics.teacher_gate import GateLine

STYLES = {"pass": "green", "fail": "bold red", "undecided": "yellow"}


def make_gate_table(title: str, lines: Sequence[GateLine]) -> Table:
    """One row per line: what is compared, value, interval, what is needed, and the outcome."""
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("requirement")
    for name in ("value", "interval", "needs"):
        table.add_column(name, justify="right")
    table.add_column("outcome")
    for line in lines:
        table.add_row(line.name, *format_line(line), line.outcome, style=STYLES[line.outcome])
    return table


def format_line(line: GateLine) -> tuple[str, str, str]:
    """Value, interval and threshold of a line."""
    low, high = (f"{end:{line.format}}" for end in line.interval or (line.value, line.value))
    interval = f"{low} to {high}" if line.interval else "none"
    sign = ">" if line.better == "higher" else "<"
    return f"{line.value:{line.format}}", interval, f"{sign} {line.threshold:{line.format}}"


def to_markdown(lines: Sequence[GateLine]) -> str:
    """The table for docs."""
    rows = ["| requirement | value | interval | needs | outcome |", "|---|---:|---:|---:|---|"]
    rows += [f"| {' | '.join((line.name, *format_line(line), line.outcome))} |" for line in lines]
    return "\n".join(rows) + "\n"


def plot_denoising(comparisons: Sequence[DenoisingComparison]) -> bytes:
    """Denoising error over noise level of teacher and Wiener denoiser, and their ratio with its interval, as PNG.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    figure = make_figure(9, 3.5)
    errors, ratios = figure.subplots(1, 2)
    sigmas = [one.sigma for one in comparisons]
    errors.loglog(sigmas, [one.wiener_error for one in comparisons], "o--", color="0.5", label="Wiener denoiser")
    errors.loglog(sigmas, [one.error for one in comparisons], "o-", label="teacher")
    errors.set(xlabel="noise level sigma", ylabel="mean square error, held-out rows")
    errors.legend()
    values = [one.ratio for one in comparisons]
    ends = [one.interval or (one.ratio, one.ratio) for one in comparisons]
    bars = [[one - low for one, (low, _) in zip(values, ends)], [high - one for one, (_, high) in zip(values, ends)]]
    ratios.errorbar(sigmas, values, yerr=bars, fmt="o-", capsize=3)
    ratios.axhline(1, color="0.5", linestyle="--")
    ratios.set(xscale="log", xlabel="noise level sigma", ylabel="error / Wiener denoiser's")
    return to_png(figure)
