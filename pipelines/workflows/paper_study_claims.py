"""The claims that `presto study paper` tests, each a contrast of systems, and how a verdict is reached.

A contrast is a weighted sum of one metric over systems: its value is averaged over seeds, and its interval adds three
independent parts: the prompts' tracks and the reference (jackknife of the paired sum, since all systems follow the same
prompts from the same noise), and the seeds of training. A claim is held if the whole interval lies on its side of 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np

from pipelines.workflows import paper_study_cells as cells
from presto_core.metrics.intervals import jackknife_half_width

Verdict = Literal["held", "not held", "undecided", "not measured"]
SeedRows = Mapping[str, Mapping[str, Any]]
"""System -> its row, of one seed."""
# stand for systems that a study finds: by validation, or by its settings
CHOSEN_RHO, DEFAULT_RHO = "S chosen rho 4", "S default rho 4"
TEACHER_MANY, TEACHER_FEW = "teacher, many steps", "teacher, few steps"
FIRST_SAMPLER = "first sampler"  # of layer-distilled systems, and their steps


@dataclass(frozen=True)
class PaperClaim:
    """A statement on a contrast of systems.

    Attributes:
        paper: what the paper reports in public text; empty if it reports nothing.
        metric: name of the metric.
        weights: system -> weight in the contrast.
        sign: -1 if the contrast is claimed to be below 0, +1 if above.
    """

    group: str
    text: str
    metric: str
    weights: dict[str, float]
    sign: int = -1
    paper: str = ""


def _subtract(mine: str, other: str, factor: float = 1.0) -> dict[str, float]:
    return {mine: 1.0, other: -factor}


def _main_effect(role: str) -> dict[str, float]:
    """Mean of the cells with sigma^train in a role minus that of those with sigma^inf, paired in the other roles."""
    position, names = cells.ROLES.index(role), product(("train", "inf"), repeat=len(cells.ROLES))
    return {f"{cells.name_noise_cell(n)} 4": 0.25 if n[position] == "train" else -0.25 for n in names}


def _compare_inputs(steps: Sequence[int]) -> dict[str, float]:
    share = 1 / len(steps)
    return {f"{cells.CONTINUOUS} {n}": share for n in steps} | {f"{cells.DISCRETE} {n}": -share for n in steps}


def _compare_layers(mine: str, other: str) -> dict[str, float]:
    return _subtract(f"{mine} {FIRST_SAMPLER}", f"{other} {FIRST_SAMPLER}")


LAST_BLOCK, PART_OF_L = "keeps the last block; no public number", "part of Presto-L"
CLAIMS = (
    PaperClaim(
        "noise", "p_DMD: train gives lower MMD than inf", "mmd", _main_effect("p_dmd"), paper="train (figure 1)"
    ),
    PaperClaim("noise", "p_DSM: train gives lower MMD than inf", "mmd", _main_effect("p_dsm"), paper="both are drawn"),
    PaperClaim(
        "noise", "p_GAN: train gives lower MMD than inf", "mmd", _main_effect("p_gan"), paper="train (figure 1)"
    ),
    PaperClaim(
        "noise",
        "all three train: lower MMD than all three inf",
        "mmd",
        _subtract("S train/train/train 4", "S inf/inf/inf 4"),
        paper="train, train or inf, train",
    ),
    PaperClaim(
        "gan",
        "least squares: lower MMD than non-saturating",
        "mmd",
        _subtract(f"{cells.LSGAN} 4", f"{cells.NONSAT} 4"),
        paper="least squares",
    ),
    PaperClaim(
        "gan",
        "least squares: lower MMD than no GAN",
        "mmd",
        _subtract(f"{cells.LSGAN} 4", f"{cells.NO_GAN} 4"),
        paper="uses a GAN",
    ),
    PaperClaim(
        "gan",
        "least squares: higher recall than no GAN",
        "recall",
        _subtract(f"{cells.LSGAN} 4", f"{cells.NO_GAN} 4"),
        +1,
    ),
    PaperClaim(
        "inputs",
        "continuous: lower MMD at the 4 steps of the grid",
        "mmd",
        _compare_inputs((4,)),
        paper="continuous (an ablation)",
    ),
    PaperClaim(
        "inputs",
        "continuous: lower MMD at 1, 2, 8, 16 steps",
        "mmd",
        _compare_inputs((1, 2, 8, 16)),
        paper="any number of steps",
    ),
    PaperClaim(
        "rho",
        "rho by validation: lower MMD than the default at 4 steps",
        "mmd",
        _subtract(CHOSEN_RHO, DEFAULT_RHO),
        paper="a knob at inference",
    ),
    *(
        PaperClaim(
            "guidance",
            f"guided real score (w = {scale:g}): {text} than unguided",
            metric,
            _subtract(f"{cells.name_guidance_cell(scale)} 4", f"{cells.name_guidance_cell(1)} 4"),
            sign,
            paper="guides the real score",
        )
        for scale in cells.GUIDANCE_SCALES[1:]
        for text, metric, sign in (("lower MMD", "mmd", -1), ("lower recall", "recall", -1))
    ),
    *(
        PaperClaim(
            "layers", f"L: lower {title} than ASE", metric, _compare_layers(cells.L, cells.ASE), paper=LAST_BLOCK
        )
        for title, metric in (
            ("MMD", "mmd"),
            ("distance to the teacher", "sample_distance"),
            ("held-out loss at budget", "loss_at_budget"),
        )
    ),
    PaperClaim(
        "layers",
        "L: lower distance to the teacher than its control",
        "sample_distance",
        _compare_layers(cells.L, cells.CONTROL),
    ),
    PaperClaim("layers", "L: lower MMD than its control", "mmd", _compare_layers(cells.L, cells.CONTROL)),
    *(
        PaperClaim("layers", f"{part}: lower {title}", metric, _compare_layers(cells.L, without), paper=PART_OF_L)
        for part, without in (
            ("budget conditioning", cells.UNCONDITIONED),
            ("self-teacher loss", cells.NO_SELF_TEACHER),
        )
        for title, metric in (("MMD", "mmd"), ("held-out loss at budget", "loss_at_budget"))
    ),
    PaperClaim("ls", "S at 4 steps: MMD at most 1.1 x the teacher's at 40", "mmd", _subtract("S 4", TEACHER_MANY, 1.1)),
    PaperClaim("ls", "S at 4 steps: MMD at most 0.5 x the teacher's at 4", "mmd", _subtract("S 4", TEACHER_FEW, 0.5)),
    PaperClaim("ls", "LS: MMD at 4 steps at most 1.25 x that of S", "mmd", _subtract("LS 4", "S 4", 1.25)),
    PaperClaim(
        "ls",
        "LS: lower MMD from L than from ASE at 4 steps",
        "mmd",
        _subtract("LS 4", f"{cells.LS_FROM_ASE} 4"),
        paper=LAST_BLOCK,
    ),
    PaperClaim(
        "ls", "LS: higher recall than S at 4 steps", "recall", _subtract("LS 4", "S 4"), +1, paper="LS is more diverse"
    ),
    PaperClaim(
        "ls",
        "LS: higher coverage than S at 4 steps",
        "coverage",
        _subtract("LS 4", "S 4"),
        +1,
        paper="LS is more diverse",
    ),
)


@dataclass(frozen=True)
class Estimate:
    """A contrast with its interval.

    Attributes:
        by_seed: the contrast of each seed.
        half_width: of the interval; NaN if it cannot be estimated.
    """

    value: float
    half_width: float
    by_seed: tuple[float, ...]

    @property
    def interval(self) -> tuple[float, float]:
        return self.value - self.half_width, self.value + self.half_width


def estimate_contrast(
    weights: Mapping[str, float], metric: str, seeds: Sequence[SeedRows], *, confidence: float
) -> Estimate | None:
    """Estimate a contrast from the rows of the seeds that have all its systems; None if none has.

    Args:
        seeds: rows with `replicates`: metric -> `value`, `generated` and `reference` (values without each fold).
    """
    found = [[row["replicates"][metric] for row in _select(weights, metric, rows)] for rows in seeds]
    found = [rows for rows in found if len(rows) == len(weights)]
    if not found:
        return None
    signs = np.array(list(weights.values()))

    def combine(side: str) -> Any:  # [seeds, folds], or [seeds] of the values
        return np.array([np.tensordot(signs, np.array([one[side] for one in seed]), axes=1) for seed in found])

    by_seed = combine("value")
    sides = [side for name in ("generated", "reference") if len(side := combine(name).mean(axis=0)) > 1]
    if len(by_seed) > 1:  # the means without each seed, whose jackknife variance is that of the mean
        sides.append((by_seed.sum() - by_seed) / (len(by_seed) - 1))
    half = jackknife_half_width(*sides, confidence=confidence) if sides else float("nan")
    return Estimate(float(by_seed.mean()), half, tuple(by_seed.tolist()))


def _select(weights: Mapping[str, float], metric: str, rows: SeedRows) -> list[Mapping[str, Any]]:
    return [rows[name] for name in weights if name in rows and metric in rows[name].get("replicates", {})]


def decide(estimate: Estimate | None, sign: int) -> Verdict:
    """Return whether the interval lies on the claimed side of 0; one seed decides nothing."""
    if estimate is None:
        return "not measured"
    low, high = estimate.interval
    if len(estimate.by_seed) < 2 or not (low > 0 or high < 0):
        return "undecided"
    return "held" if (low > 0) == (sign > 0) else "not held"


def combine_verdicts(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict that all teachers share; otherwise undecided."""
    return verdicts[0] if len(set(verdicts)) == 1 else "undecided"
