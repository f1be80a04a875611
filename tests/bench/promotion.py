"""How often the default promotion gate errs, on made-up models of known quality: `python -m tests.bench.promotion`."""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np
from rich.table import Table

from pipelines.console import make_console
from pipelines.registry.model_comparison import Comparison
from pipelines.registry.report_samples import ChosenSamples
from presto_core.config.promotion import PromoteConfig
from presto_core.metrics.mmd_ratio import compare_mmd
from tests.support.simulated_models import SHIPPED_TEST, SHIPPED_VALIDATION, Design, simulate_models

FACTORS = (0.75, 1.0, 1.25, 1.5, 2.0)
SIMULATIONS = 200


def measure(design: Design, factor: float, *, simulations: int, seed: int = 0) -> Counter[str]:
    """Outcome -> how many of the simulated candidates, whose MMD is `factor` times their teacher's, have it."""
    limits, rng = PromoteConfig(), np.random.default_rng(seed)
    assert limits.max_teacher_ratio is not None
    outcomes: Counter[str] = Counter()
    for _ in range(simulations):
        sides = simulate_models(design, factor, rng)
        ratio = compare_mmd(*sides, groups=limits.interval_groups, confidence=limits.confidence)
        mine, theirs, real = (ChosenSamples("made-up", len(side.values), side) for side in sides)
        comparison = Comparison("", mine, theirs, real, ratio, limits.worse_teacher_ratio, limits.max_teacher_ratio)
        outcomes[comparison.outcome] += 1
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=SIMULATIONS, help="of each cell of the table")
    simulations = parser.parse_args().simulations
    table = Table(title=f"against teacher: share of {simulations} simulated candidates")
    for name in ("clips", "tracks", "MMD / teacher's", "promoted", "refused: worse", "refused: too few samples"):
        table.add_column(name, justify="right")
    for design in (SHIPPED_VALIDATION, SHIPPED_TEST):
        for factor in FACTORS:
            found = measure(design, factor, simulations=simulations)
            shares = [f"{found[name] / simulations:.0%}" for name in ("good enough", "worse", "undecided")]
            table.add_row(str(design.clips), str(design.tracks), f"{factor:g}", *shares)
    make_console().print(table)


if __name__ == "__main__":
    main()
