"""The plots of docs/noise.md: `python -m tests.bench.noise_plots docs/images` draws them from the defaults."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from pipelines.evaluate.plots import make_figure, plot_noise_distributions, to_png
from presto_core.config.noise import (
    GridNoise,
    KarrasNoise,
    LogNormalNoise,
    LogUniformNoise,
    MixtureNoise,
    TimeUniformNoise,
    TruncatedNoise,
)
from presto_core.config.sections import StepsConfig

KINDS = {
    "lognormal": LogNormalNoise(),
    "karras": KarrasNoise(),
    "log_uniform": LogUniformNoise(),
    "time_uniform, clock flow": TimeUniformNoise(),
    "truncated: lognormal from 0.3 to 3": TruncatedNoise(sigma_low=0.3, sigma_high=3.0),
    "mixture: half lognormal, half karras": MixtureNoise(),
}
LINES = 200  # of the density, over ln sigma


def plot_kinds() -> bytes:
    """One panel per kind, over the same levels; the four levels of `grid` are marks below."""
    figure = make_figure(9, 5)
    sigma = torch.logspace(-3.2, 2.4, LINES, dtype=torch.float64)
    marks = GridNoise().levels()
    assert marks is not None
    for index, (name, noise) in enumerate(KINDS.items(), 1):
        axes = figure.add_subplot(2, 3, index)
        density = torch.diff(noise.cdf(sigma)) / torch.diff(sigma.log())
        axes.semilogx(sigma[1:], density, linewidth=1.5)
        axes.plot(marks, torch.zeros_like(marks), "|", color="black", markersize=10)
        axes.set_title(name, fontsize=9)
        axes.set(xlim=(6e-4, 250), ylim=(-0.03 * float(density.max()), 1.1 * float(density.max())), yticks=[])
        if index > 3:
            axes.set_xlabel("sigma")
    return to_png(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="docs/images")
    folder = parser.parse_args().folder
    (folder / "noise_roles.png").write_bytes(plot_noise_distributions(StepsConfig()))
    (folder / "noise_kinds.png").write_bytes(plot_kinds())


if __name__ == "__main__":
    main()
