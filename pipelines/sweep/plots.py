"""Plots of a sweep as PNG bytes: parallel coordinates, noise response in dB, Pareto front, importance, learning."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch

from pipelines.evaluate.plots import ROLES, get_colormap, make_figure, to_png
from presto_core.config.loader import load_config
from presto_core.config.schema import StepsStage
from presto_core.diffusion.noise import snr_db
from presto_core.extras import import_extra

Rows = list[dict[str, Any]]


def plot_parallel_coordinates(result: dict[str, Any]) -> bytes:
    """Plot one line per trial through its settings to the metric; darker is better."""
    rows, metric_label = _align_rows(result)
    keys = sorted({key for row in rows for key in row["settings"]})
    figure = make_figure(max(6.0, 1.6 * (len(keys) + 1)), 4.5)
    axes, get_color = figure.subplots(), _make_color_map(result, rows)
    positions = {key: _compute_positions([row["settings"].get(key) for row in rows]) for key in keys}
    heights = _compute_positions([row["value"] for row in rows])[0]
    for i, row in enumerate(rows):
        line = [positions[key][0][i] for key in keys] + [heights[i]]
        axes.plot(range(len(line)), line, color=get_color(row["value"]), alpha=0.8, linewidth=1.2)
    for x, key in enumerate(keys):
        for label, y in positions[key][1]:
            axes.text(
                x, y, label, fontsize=6, ha="center", va="center", bbox={"color": "white", "alpha": 0.7, "pad": 1}
            )
    names = [key.replace(".", ".\n", 1) for key in keys] + [metric_label.replace(" ", "\n", 1)]
    axes.set_xticks(range(len(names)), names, fontsize=6, rotation=20)
    axes.set(yticks=[], ylim=(-0.08, 1.08))
    return to_png(figure)


def plot_noise_response(result: dict[str, Any]) -> bytes | None:
    """Plot, per swept role, noise densities over SNR in dB, and the metric against their medians."""
    roles = [role for role in ROLES if any(key.startswith(f"steps.{role}") for key in result["keys"])]
    rows, metric_label = _align_rows(result)
    if not roles or not rows:
        return None
    figure = make_figure(4 * len(roles), 6)
    panels, get_color = figure.subplots(2, len(roles), squeeze=False), _make_color_map(result, rows)
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    for column, role in enumerate(roles):
        above, below = panels[0][column], panels[1][column]
        for row in sorted(rows, key=lambda r: -r["value"]):
            config = load_config(StepsStage, None, {**result["base"], **row["settings"]})
            decibel = snr_db(getattr(config.steps, role).quantile(u), 1.0)
            color, q = get_color(row["value"]), torch.quantile(decibel, torch.tensor([0.1, 0.5, 0.9]).double())
            above.hist(decibel.numpy(), bins=80, range=(-45, 60), density=True, histtype="step", color=color)
            low, middle, high = q.tolist()
            below.errorbar(middle, row["value"], xerr=[[middle - low], [high - middle]], color=color, fmt="o", ms=4)
        above.set(title=role, ylabel="density" if column == 0 else "")
        below.set(xlabel="SNR, dB: median, 10 to 90 %", xlim=(-45, 60), ylabel=metric_label if column == 0 else "")
    return to_png(figure)


def plot_pareto(result: dict[str, Any]) -> bytes:
    """Plot the metric against cost, with the Pareto front."""
    cost = result["metrics"][1] if len(result["metrics"]) > 1 else "blocks_run"
    done = [row for row in result["trials"] if row["state"] == "finished" and row["value"] is not None]
    front = [row for row in done if row["run_id"] in result["pareto"]]
    figure = make_figure(6, 4)
    axes = figure.subplots()
    axes.scatter([row["last"][cost] for row in done], [row["value"] for row in done], color="grey", s=18)
    points = sorted((row["last"][cost], row["value"]) for row in front)
    axes.plot(*zip(*points), marker="o", color="C0", label="front") if points else None
    axes.set(xlabel=f"{cost} per clip", ylabel=result["metrics"][0])
    axes.legend(frameon=False)
    return to_png(figure)


def plot_importance(result: dict[str, Any]) -> bytes | None:
    """Plot the share of variance that each setting explains."""
    shares = dict(sorted(result["importance"]["shares"].items(), key=lambda item: item[1]))
    if not shares:
        return None
    figure = make_figure(7, 0.5 + 0.35 * len(shares))
    axes = figure.subplots()
    axes.barh(list(shares), list(shares.values()))
    axes.set(xlabel=f"share of variance explained after {result['importance']['update']} updates (fANOVA)")
    return to_png(figure)


def plot_learning_curves(result: dict[str, Any]) -> bytes:
    """Plot the metric against updates, one line per trial up to where it stopped."""
    rows, metric = _select_valued_rows(result), result["metrics"][0]
    figure, get_color = make_figure(7, 4), _make_color_map(result, rows)
    axes = figure.subplots()
    for row in rows:
        points = sorted((int(update), values[metric]) for update, values in row["rows"].items())
        ends = "o" if row["state"] == "finished" else "x"
        axes.plot(*zip(*points), color=get_color(row["value"]), marker=ends, markevery=[-1], linewidth=1)
    axes.set(xlabel="updates (x: stopped early)", ylabel=metric)
    return to_png(figure)


def _select_valued_rows(result: dict[str, Any]) -> Rows:
    return [row for row in result["trials"] if row["value"] is not None]


def _align_rows(result: dict[str, Any]) -> tuple[Rows, str]:
    """Return trials with the metric at the last update that all reached, which early stopping does not bias."""
    update, metric = int(result["importance"]["update"]), result["metrics"][0]
    rows_by_update = [({int(u): values for u, values in row["rows"].items()}, row) for row in result["trials"]]
    rows = [row | {"value": values[update][metric]} for values, row in rows_by_update if update in values]
    return rows, f"{metric} after {update} updates"


def _make_color_map(result: dict[str, Any], rows: Rows) -> Callable[[float], Any]:
    """Return a function from metric to color; darker is better."""
    sign = 1 if result["mode"] == "min" else -1
    values = [sign * row["value"] for row in rows] or [0.0, 1.0]
    scale = import_extra("matplotlib.colors", "drawing plots").Normalize(min(values), max(values))
    colormap = get_colormap()
    return lambda value: colormap(scale(sign * value))


def _compute_positions(values: list[Any]) -> tuple[list[float], list[tuple[str, float]]]:
    """Return the position of each value in [0, 1], and labels; values that a trial lacks are at the bottom."""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    present = [v for v in values if v is not None]
    if present and len(numbers) == len(present):
        low, high = min(numbers), max(numbers)
        span = (high - low) or 1.0
        return [(v - low) / span if v is not None else -0.06 for v in values], [
            (f"{low:.3g}", 0.0),
            (f"{high:.3g}", 1.0),
        ]
    names = sorted({_format_value(v) for v in present})
    step = {name: i / max(len(names) - 1, 1) for i, name in enumerate(names)}
    return [step[_format_value(v)] if v is not None else -0.06 for v in values], list(step.items())


def _format_value(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(str(v) for v in value.values())
    return value if isinstance(value, str) else json.dumps(value)
