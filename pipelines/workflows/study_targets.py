"""The ratios that `presto study` reports, each with its target: what the paper claims, on the rows of one report."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

GENERATOR_STEPS, TEACHER_FEW_NFE, TEACHER_MANY_STEPS = 4, 4, 40
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Target:
    """A ratio with a target.

    Attributes:
        description: the ratio in words.
        ratio: computes it from the systems of one report.
        threshold: its maximum, or its minimum if `at_least`.
    """

    description: str
    ratio: Callable[[Rows], float]
    threshold: float
    at_least: bool = False

    def is_met(self, value: float) -> bool:
        return value >= self.threshold if self.at_least else value <= self.threshold


def _best_teacher_mmd(rows: Rows, fits: Callable[[dict[str, Any]], bool]) -> float:
    """MMD on the test split of the teacher's sampler that is best on the validation split."""
    fitting = [row for row in rows if row["role"] == "teacher" and fits(row)]
    return float(min(fitting, key=_get_validation_mmd)["mmd"])


def _divide(mine: float, theirs: float) -> float:
    """Ratio of two unbiased MMDs, which scatter around 0 where a system equals real music: then there is no ratio."""
    if theirs > 0:
        return max(mine, 0.0) / theirs
    return math.inf if mine > 0 else 1.0


def _get_validation_mmd(row: dict[str, Any]) -> float:
    """MMD on the validation split; on the reported one where nothing was validated."""
    return float(row.get("validation", row)["mmd"])


def _find_generator(rows: Rows, label: str) -> dict[str, Any]:
    return next(row for row in rows if row["label"] == label and row["steps"] == GENERATOR_STEPS)


def _find_layer_row(rows: Rows, method: str) -> dict[str, Any]:
    """Return the row of a layer-distilled model with its first sampler, which is the teacher's first sampler."""
    return next(row for row in rows if row["role"] == "layers" and row["label"].split()[0] == method)


TARGETS = {
    "few": Target(
        "MMD of S at 4 steps ÷ the teacher at 4 evaluations, its best sampler by validation",
        lambda rows: _divide(
            _find_generator(rows, "S")["mmd"], _best_teacher_mmd(rows, lambda row: row["nfe"] == TEACHER_FEW_NFE)
        ),
        0.5,
    ),
    "many": Target(
        "MMD of S at 4 steps ÷ the teacher with 40 steps and more, its best sampler by validation",
        lambda rows: _divide(
            _find_generator(rows, "S")["mmd"],
            _best_teacher_mmd(rows, lambda row: row["steps"] >= TEACHER_MANY_STEPS),
        ),
        1.1,
    ),
    "layers": Target(
        "distance per sample to the teacher's own clips, L ÷ ASE",
        lambda rows: _find_layer_row(rows, "L")["sample_distance"] / _find_layer_row(rows, "ASE")["sample_distance"],
        1.0,
    ),
    "both": Target(
        "MMD at 4 steps, LS ÷ S",
        lambda rows: _divide(_find_generator(rows, "LS")["mmd"], _find_generator(rows, "S")["mmd"]),
        1.25,
    ),
    "faster": Target(
        "time of a clip at 4 steps, end to end, S ÷ LS",
        lambda rows: _find_generator(rows, "S")["total_ms"] / _find_generator(rows, "LS")["total_ms"],
        1.0,
        at_least=True,
    ),
}
