"""The project's plots as PNG bytes: noise distributions, losses, quality against cost, activations."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from pipelines.evaluate.spectrograms import check_spectrograms as check_spectrograms
from pipelines.evaluate.spectrograms import plot_spectrogram as plot_spectrogram
from pipelines.evaluate.spectrograms import plot_spectrogram_with_axes as plot_spectrogram_with_axes
from pipelines.evaluate.spectrograms import plot_spectrograms_with_axes as plot_spectrograms_with_axes
from presto_core.config.noise import NoiseConfig
from presto_core.config.sections import StepsConfig
from presto_core.diffusion.noise import snr_db
from presto_core.extras import import_extra
from presto_core.metrics.table import METRICS, headline_metric

ROLES: dict[str, dict[str, Any]] = {
    "p_gen": {},
    "p_dmd": {"linewidth": 3},
    "p_dsm": {"linestyle": "--"},
    "p_gan": {"linestyle": ":"},
}

HEADLINE = headline_metric().name
COST_LABELS = {"blocks_run": "transformer blocks per clip", "total_ms": "ms per clip, from text to audio"}


@dataclass(frozen=True)
class QualityPoint:
    """One system in a plot of quality.

    Attributes:
        label: its model, which has one curve.
        row: its row of the report, for costs.
        value: of the headline metric.
        errors: how far the interval reaches below and above `value`.
    """

    label: str
    row: dict[str, Any]
    value: float
    errors: tuple[float, float]


def plot_noise_distributions(steps: StepsConfig, *, sigma_data: float = 1.0) -> bytes:
    """Density of each role's noise over the signal-to-noise ratio in decibels (the paper's figure 1)."""
    figure = make_figure(9, 3.5)
    axes = figure.subplots()
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    for role, style in ROLES.items():  # styles that show through each other: roles often share a distribution
        noise = getattr(steps, role)
        decibel = snr_db(noise.quantile(u), sigma_data).numpy()
        axes.hist(
            decibel,
            bins=120,
            range=(-45, 60),
            density=True,
            histtype="step",
            label=_format_role_label(role, noise),
            **style,
        )
    axes.set(xlabel="signal-to-noise ratio, dB (noise falls to the right)", ylabel="density")
    _add_outer_legend(axes)
    return to_png(figure)


def plot_losses(histories: dict[str, list[tuple[int, float]]]) -> bytes:
    """One panel per metric: value against step."""
    reported = {name: points for name, points in histories.items() if points}
    columns = min(3, max(1, len(reported)))
    rows = -(-max(1, len(reported)) // columns)
    figure = make_figure(4 * columns, 2.6 * rows)
    for index, (name, points) in enumerate(reported.items(), 1):
        axes = figure.add_subplot(rows, columns, index)
        steps, values = zip(*points)
        axes.plot(steps, values, linewidth=1)
        axes.set(title=name, xlabel="step")
    return to_png(figure)


def plot_quality_vs_blocks(result: dict[str, Any]) -> bytes:
    """Headline metric against transformer blocks per clip: one curve per model, with intervals and the noise floor."""
    return _plot_quality(_list_points(result, "blocks_run"), _read_floor(result), cost="blocks_run")


def plot_quality_vs_time(result: dict[str, Any]) -> bytes:
    """The same against the time of one clip from text to audio."""
    return _plot_quality(_list_points(result, "total_ms"), _read_floor(result), cost="total_ms")


def plot_quality_over_seeds(result: dict[str, Any]) -> bytes:
    """Headline metric against blocks, over seeds: mean and standard deviation; the floor if the study has it."""
    rows = result["systems"]
    points = [QualityPoint(r["label"], r, r[HEADLINE]["mean"], (r[HEADLINE]["std"] or 0.0,) * 2) for r in rows]
    floor = result.get("floor", {}).get(HEADLINE, {}).get("mean")
    return _plot_quality(points, floor, cost="blocks_run")


def _list_points(result: dict[str, Any], cost: str) -> list[QualityPoint]:
    """Points of the systems that have the headline metric and the cost, which folders of audio have not."""
    points = []
    for row in result["systems"]:
        if row.get(HEADLINE) is None or row.get(cost) is None:
            continue
        value = row[HEADLINE]
        low, high = row.get("intervals", {}).get(HEADLINE, (value, value))
        points.append(QualityPoint(row["label"], row, value, (max(value - low, 0.0), max(high - value, 0.0))))
    return points


def _read_floor(result: dict[str, Any]) -> float | None:
    """The headline metric of real training clips; None in a report that has another floor."""
    return result["floor"].get(HEADLINE)


def _plot_quality(points: list[QualityPoint], floor: float | None, *, cost: str) -> bytes:
    metric = METRICS[HEADLINE]
    figure = make_figure(7, 4)
    axes = figure.subplots()
    groups: dict[str, list[QualityPoint]] = {}
    for point in points:
        groups.setdefault(point.label, []).append(point)
    for label, group in groups.items():
        ordered = sorted(group, key=lambda point: float(point.row[cost]))
        values = [point.value * metric.scale for point in ordered]
        errors = np.transpose([point.errors for point in ordered]) * metric.scale
        axes.errorbar([p.row[cost] for p in ordered], values, yerr=errors, marker="o", capsize=3, label=label)
    if floor is not None:
        axes.axhline(floor * metric.scale, linestyle=":", color="grey", label="real music")
    heights = [point.value for point in points] + ([] if floor is None else [floor])
    axes.set(
        xscale=choose_scale([float(point.row[cost]) for point in points]),
        yscale=choose_scale(heights),
        xlabel=COST_LABELS[cost],
        ylabel=metric.title,
    )
    _add_outer_legend(axes)
    return to_png(figure)


def choose_scale(values: Sequence[float]) -> Literal["log", "linear"]:
    """Return the scale of an axis: logarithmic if positive values span a decade or more."""
    return "log" if values and min(values) > 0 and max(values) >= 10 * min(values) else "linear"


def _add_outer_legend(axes: Any) -> None:
    """Put the legend to the right of the axes, where it hides no point."""
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def plot_hidden_variance(variances: dict[str, list[dict[str, Any]]]) -> bytes:
    """Variance of the activations after each block that runs: one panel per model, one line per noise level."""
    figure = make_figure(4 * len(variances), 3.5)
    panels = figure.subplots(1, len(variances), sharey=True, squeeze=False)[0]
    scale = choose_scale([v for lines in variances.values() for line in lines for v in line["variance"].values()])
    for axes, (label, lines) in zip(panels, variances.items()):
        for i, line in enumerate(lines):
            depths, values = zip(*((int(block) + 1, v) for block, v in line["variance"].items()))
            color = get_colormap()(i / max(len(lines) - 1, 1))
            axes.plot(depths, values, marker="o", markersize=3, color=color, label=f"σ = {line['sigma']:g}")
        axes.set(title=label, xlabel="block", yscale=scale)
    panels[0].set(ylabel="variance of activations")
    _add_outer_legend(panels[-1])
    return to_png(figure)


def _format_role_label(role: str, noise: NoiseConfig) -> str:
    return f"{role}: {noise.kind}"


def make_figure(width: float, height: float) -> Any:
    """Make an empty figure of matplotlib; sizes are in inches.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    return import_extra("matplotlib.figure", "drawing plots").Figure(figsize=(width, height), layout="constrained")


def get_colormap(name: str = "viridis") -> Any:
    """Return the colours of values in [0, 1]; see `make_figure`."""
    return import_extra("matplotlib", "drawing plots").colormaps[name]


def to_png(figure: Any) -> bytes:
    """A figure as the bytes of a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()
