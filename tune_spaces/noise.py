"""Noise distributions of Presto-S per role: family and parameters (METHOD section 2)."""

from __future__ import annotations

from tune_spaces.domains import Choice, Conditional, Range, Space

LOGNORMAL = {"mean": Range(-1.6, 1.6), "std": Range(0.6, 2.0)}
KARRAS = {"rho": Range(2.0, 10.0)}
LOGNORMAL_OR_KARRAS = Conditional({"lognormal": LOGNORMAL, "karras": KARRAS})

NOISE: Space = {
    # continuous inputs only: the discrete grid is an ablation of the paper (paper.py)
    "steps.p_gen": Conditional({"karras": KARRAS, "lognormal": {"mean": Range(-0.5, 2.0), "std": Range(1.0, 2.5)}}),
    "steps.p_dmd": LOGNORMAL_OR_KARRAS,
    "steps.p_dsm": LOGNORMAL_OR_KARRAS,
    "steps.p_gan": LOGNORMAL_OR_KARRAS,
}

# a few points of the same families, for grids and comparable response curves
POINTS = Choice(
    (
        {"kind": "lognormal", "mean": -0.4, "std": 1.0},
        {"kind": "lognormal", "mean": 0.4, "std": 1.4},
        {"kind": "karras", "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0},
    )
)
NOISE_POINTS: Space = {"steps.p_dmd": POINTS, "steps.p_dsm": POINTS, "steps.p_gan": POINTS}
