"""The figures of `presto study paper`: the headline metric of a group's systems, with intervals, and of each seed."""

from __future__ import annotations

from typing import Any

from pipelines.evaluate.plots import choose_scale, make_figure, to_png
from presto_core.metrics.table import headline_metric

STEPS_TITLE, RHO_TITLE = "sampling steps", "rho"


def plot_group(group: dict[str, Any], floor: dict[str, Any]) -> bytes:
    """Plot a group's systems: curves over steps or rho where it varies them, otherwise one line per system.

    Args:
        group: `title` and `systems` as results.json has them.
        floor: metrics of real music.
    """
    metric, systems = headline_metric(), group["systems"]
    shown = [system for system in systems if metric.name in system]
    axis = _choose_axis(shown)
    figure = make_figure(7, 4 if axis else 1.2 + 0.4 * len(shown))
    axes = figure.subplots()
    if axis:
        _plot_curves(axes, shown, axis)
        axes.set(xlabel=STEPS_TITLE if axis == "steps" else RHO_TITLE, ylabel=metric.title)
        axes.set(xticks=sorted({system[axis] for system in shown}))
        axes.legend(frameon=False)
        _mark_floor(axes.axhline, floor)
    else:
        _plot_dots(axes, shown)
        axes.set(xlabel=metric.title, xscale=choose_scale([s[metric.name]["mean"] for s in shown]))
        _mark_floor(axes.axvline, floor)
    axes.set_title(group["title"])
    return to_png(figure)


def _choose_axis(systems: list[dict[str, Any]]) -> str:
    """`rho` or `steps` if the systems of a cell differ in it; otherwise empty."""
    cells = {system["cell"] for system in systems}
    if any(system["rho"] is not None for system in systems):
        return "rho"
    return "steps" if len(systems) > len(cells) else ""


def _plot_curves(axes: Any, systems: list[dict[str, Any]], axis: str) -> None:
    """One curve per cell, and per number of steps if rho varies."""
    metric = headline_metric()
    curves: dict[str, list[dict[str, Any]]] = {}
    for system in systems:
        label = f"{system['cell']}, {system['steps']} steps" if axis == "rho" else system["cell"]
        curves.setdefault(label, []).append(system)
    for label, points in curves.items():
        points.sort(key=lambda system: float(system[axis]))
        values = [system[metric.name]["mean"] * metric.scale for system in points]
        axes.errorbar([s[axis] for s in points], values, yerr=_errors(points), marker="o", capsize=3, label=label)


def _plot_dots(axes: Any, systems: list[dict[str, Any]]) -> None:
    metric = headline_metric()
    heights = list(range(len(systems)))[::-1]
    values = [system[metric.name]["mean"] * metric.scale for system in systems]
    axes.errorbar(values, heights, xerr=_errors(systems), fmt="o", capsize=3)
    for height, system in zip(heights, systems):
        seeds = [value * metric.scale for value in system[metric.name]["by_seed"]]
        axes.plot(seeds, [height] * len(seeds), ".", color="grey", zorder=0)
    axes.set_yticks(heights, [system["key"] for system in systems])


def _errors(systems: list[dict[str, Any]]) -> list[list[float]]:
    """How far the intervals reach below and above the values; 0 without an interval."""
    metric = headline_metric()
    found = [system[metric.name] for system in systems]
    ends = [value.get("interval", [value["mean"]] * 2) for value in found]
    below = [max(value["mean"] - low, 0.0) * metric.scale for value, (low, _) in zip(found, ends)]
    return [below, [max(high - value["mean"], 0.0) * metric.scale for value, (_, high) in zip(found, ends)]]


def _mark_floor(draw_line: Any, floor: dict[str, Any]) -> None:
    metric = headline_metric()
    if metric.name in floor:
        draw_line(floor[metric.name] * metric.scale, linestyle=":", color="grey")
