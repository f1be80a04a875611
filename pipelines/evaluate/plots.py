"""The project's plots as PNG bytes: noise distributions, losses, quality against cost, activations, spectrograms."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch

from presto_core.config.noise import NoiseConfig
from presto_core.config.sections import StepsConfig
from presto_core.diffusion.noise import snr_db
from presto_core.extras import import_extra

Samples = np.ndarray[Any, np.dtype[np.float32]]
ROLES: dict[str, dict[str, Any]] = {
    "p_gen": {},
    "p_dmd": {"linewidth": 3},
    "p_dsm": {"linestyle": "--"},
    "p_gan": {"linestyle": ":"},
}


def plot_noise_distributions(steps: StepsConfig, *, sigma_data: float = 1.0) -> bytes:
    """Density of each role's noise over the signal-to-noise ratio in decibels (the paper's figure 1)."""
    figure = make_figure(7, 3.5)
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
    axes.legend(frameon=False)
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
    """Fréchet distance against blocks per clip, one curve per system, with the noise floor; of one evaluation."""
    return _plot_quality([{**row, "fd": (row["fd"], 0.0)} for row in result["systems"]], result["floor"]["fd"])


def plot_quality_over_seeds(result: dict[str, Any]) -> bytes:
    """The same over seeds: mean and standard deviation."""
    rows = [{**row, "fd": (row["fd"]["mean"], row["fd"]["std"])} for row in result["systems"]]
    return _plot_quality(rows, result["floor_fd"]["mean"])


def _plot_quality(systems: list[dict[str, Any]], floor: float) -> bytes:
    figure = make_figure(7, 4)
    axes = figure.subplots()
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in systems:
        groups.setdefault(row["label"], []).append(row)
    for label, rows in groups.items():
        ordered = sorted(rows, key=lambda r: r["blocks_run"])
        means, errors = zip(*(r["fd"] for r in ordered))
        axes.errorbar([r["blocks_run"] for r in ordered], means, yerr=errors, marker="o", capsize=3, label=label)
    axes.axhline(floor, linestyle=":", color="grey", label="real music")
    axes.set(xscale="log", yscale="log", xlabel="transformer blocks per clip", ylabel="Fréchet distance")
    axes.legend(frameon=False)
    return to_png(figure)


def plot_hidden_variance(variances: dict[str, list[dict[str, Any]]]) -> bytes:
    """Variance of the activations after each block that runs: one panel per model, one line per noise level."""
    figure = make_figure(4 * len(variances), 3.5)
    panels = figure.subplots(1, len(variances), sharey=True, squeeze=False)[0]
    for axes, (label, lines) in zip(panels, variances.items()):
        for i, line in enumerate(lines):
            depths, values = zip(*((int(block) + 1, v) for block, v in line["variance"].items()))
            color = get_colormap()(i / max(len(lines) - 1, 1))
            axes.plot(depths, values, marker="o", markersize=3, color=color, label=f"σ = {line['sigma']:g}")
        axes.set(title=label, xlabel="block", yscale="log")
    panels[0].set(ylabel="variance of activations")
    panels[-1].legend(frameon=False, fontsize="small")
    return to_png(figure)


def plot_spectrogram(samples: Samples, rate_hz: int, title: str) -> bytes:
    """Level over time and frequency of mono audio [N]."""
    figure = make_figure(9, 3.5)
    axes = figure.subplots()
    with np.errstate(divide="ignore"):  # digital silence is minus infinity dB: drawn in the darkest colour
        axes.specgram(samples, NFFT=2048, Fs=rate_hz, noverlap=1536, vmin=-140, vmax=-30, cmap="magma")
    axes.set(xlabel="seconds", ylabel="Hz", title=title, ylim=(0, min(16000, rate_hz / 2)))
    return to_png(figure)


def _format_role_label(role: str, noise: NoiseConfig) -> str:
    return f"{role}: {noise.kind}"


def make_figure(width: float, height: float) -> Any:
    """Make an empty figure of matplotlib; sizes are in inches.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    return import_extra("matplotlib.figure", "drawing plots").Figure(figsize=(width, height), layout="constrained")


def get_colormap() -> Any:
    """Return the colours of values in [0, 1]; see `make_figure`."""
    return import_extra("matplotlib", "drawing plots").colormaps["viridis"]


def to_png(figure: Any) -> bytes:
    """A figure as the bytes of a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()
