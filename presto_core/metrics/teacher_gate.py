"""The gate of a teacher: lines that it must pass before anything is distilled from it, from the rows of a report.

A line compares a value with a threshold by the value's interval: passed if all of the interval is on the right side,
failed if none of it is, and undecided if it crosses. Without an interval a line can fail, but not pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from presto_core.metrics.table import METRICS, headline_metric

Outcome = Literal["pass", "fail", "undecided"]
Row = Mapping[str, Any]
Interval = tuple[float, float]

NEIGHBOR_METRICS = ("precision", "density", "coverage")
SHARE_OF_REAL = 0.5
"""Of real music's precision, density and coverage that a teacher must reach at the same number of clips."""
CLIPPED_SHARE = 0.05
"""Of clips that may have clipped samples."""
LEAST_STEPS = 4
"""Step counts below say nothing about a teacher's own samples."""


@dataclass(frozen=True)
class GateLine:
    """One requirement of a teacher.

    Attributes:
        name: what is compared, in a few words.
        value: what was measured.
        threshold: what it is compared with.
        better: which side of the threshold passes; a value equal to it does not decide.
        interval: of the value; None if it could not be estimated.
        problem: what is wrong with a teacher that fails it.
        format: of the numbers.
    """

    name: str
    value: float
    threshold: float
    better: Literal["lower", "higher"]
    interval: Interval | None
    problem: str
    format: str = ".2f"

    @property
    def outcome(self) -> Outcome:
        sign = 1 if self.better == "higher" else -1
        ends = self.interval or (self.value, self.value)
        margins = sorted(sign * (end - self.threshold) for end in ends)
        if margins[1] < 0:
            return "fail"
        return "pass" if margins[0] > 0 and self.interval else "undecided"

    def to_dict(self) -> dict[str, Any]:
        """Return the form for JSON, which has no infinity: an open end of the interval is None."""
        ends = [end if math.isfinite(end) else None for end in self.interval or ()]
        return asdict(self) | {"interval": ends or None, "outcome": self.outcome}


def summarize_verdict(lines: Sequence[GateLine]) -> str:
    """Return `passed`, or `failed: ` or `undecided: ` with the names of the lines that decide it."""
    for outcome, word in (("fail", "failed"), ("undecided", "undecided")):
        names = [line.name for line in lines if line.outcome == outcome]
        if names:
            return f"{word}: {', '.join(names)}"
    return "passed"


def list_report_lines(result: Row) -> list[GateLine]:
    """Return the lines that a report decides (content of report.json); empty if it has no teacher.

    On the validation split, since a gate chooses; on the reported rows where nothing was validated.
    """
    rows = find_teacher_rows(result)
    if not rows:
        return []
    measured = result.get("gate") or {}
    best = find_best(select_steps(rows, max(row["steps"] for row in rows)), rows)
    row: Row = measured.get("teacher") or best
    floor: Row = measured.get("floor") or result.get("floor") or {}
    return [
        *_compare_steps(rows, measured.get("step_differences", {})),
        *_compare_with_real(row, floor),
        *_limit_clipping(row),
        *_compare_with_chance(row),
    ]


def find_teacher_rows(result: Row) -> list[Row]:
    """Return the teacher's rows of a report that the headline metric was measured for."""
    name = headline_metric().name
    return [row for row in result.get("systems", ()) if row.get("role") == "teacher" and name in row]


def list_step_pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return (row of more steps, row of fewer) for each two neighbouring step counts, each with its best sampler.

    Step counts from 4 on; of a report that has fewer than two of these, all.
    """
    counts = sorted({int(row["steps"]) for row in rows}, reverse=True)
    enough = [steps for steps in counts if steps >= LEAST_STEPS]
    counts = enough if len(enough) > 1 else counts
    best = [find_best(select_steps(rows, steps), rows) for steps in counts]
    return list(zip(best, best[1:]))


def select_steps(rows: Sequence[Row], steps: int) -> list[Row]:
    return [row for row in rows if row["steps"] == steps]


def find_best(rows: Sequence[Row], teachers: Sequence[Row]) -> Row:
    """Return the row with the lowest headline metric: of the validation split if all `teachers` were measured there."""
    return min(rows, key=lambda row: read_headline(row, teachers))


def read_headline(row: Row, teachers: Sequence[Row]) -> float:
    name = headline_metric().name
    is_validated = all(name in one.get("validation", {}) for one in teachers)
    return float(row["validation"][name] if is_validated else row[name])


def name_pair(many: Row, few: Row) -> str:
    """The key of two rows in a report's `gate.step_differences`."""
    return f"{many['name']} | {few['name']}"


def _compare_steps(rows: Sequence[Row], differences: Mapping[str, Sequence[float]]) -> list[GateLine]:
    """More steps must be better than fewer: a sampler that follows a good denoiser closely is the better one."""
    metric, lines = headline_metric(), []
    for many, few in list_step_pairs(rows):
        of_few, of_many = (read_headline(row, rows) for row in (few, many))
        ends = differences.get(name_pair(many, few))
        numbers = [metric.format_value(value) for value in (of_few, of_many)]
        lines.append(
            GateLine(
                f"{many['steps']} steps better than {few['steps']}",
                metric.scale * (of_few - of_many),
                0.0,
                "higher",
                (metric.scale * ends[0], metric.scale * ends[1]) if ends else None,
                f"{few['steps']} steps ({metric.title} {numbers[0]}) beat {many['steps']} ({numbers[1]})",
                ".1f",
            )
        )
    return lines


def _compare_with_real(row: Row, floor: Row) -> list[GateLine]:
    lines = []
    for name in NEIGHBOR_METRICS:
        if name not in row or not floor.get(name):
            continue
        own, real = (METRICS[name].format_value(values[name]) for values in (row, floor))
        intervals = [values.get("intervals", {}).get(name) for values in (row, floor)]
        lines.append(
            GateLine(
                f"{name} / real music's",
                row[name] / floor[name],
                SHARE_OF_REAL,
                "higher",
                divide_intervals(row[name], intervals[0], floor[name], intervals[1]) if all(intervals) else None,
                f"{name} {own} is below half of real music's {real}",
            )
        )
    return lines


def divide_intervals(a: float, of_a: Sequence[float], b: float, of_b: Sequence[float]) -> Interval:
    """Return the interval of a / b from those of a >= 0 and b > 0, which count as independent.

    MOVER on the logarithm (Donner & Zou 2012): distances to the ends add up in quadrature. Two systems compared with
    one reference are correlated, which makes the interval wider than it needs to be.
    """
    above = of_a[1] / of_b[0] if of_b[0] > 0 else math.inf
    if a <= 0:  # without a logarithm, the ratio of the ends
        return 0.0, above
    low = math.hypot(math.log(a / of_a[0]), math.log(of_b[1] / b)) if of_a[0] > 0 else math.inf
    high = math.hypot(math.log(of_a[1] / a), math.log(b / of_b[0])) if of_b[0] > 0 else math.inf
    return a / b * math.exp(-low), a / b * math.exp(high)


def _limit_clipping(row: Row) -> list[GateLine]:
    if "clipped" not in row:
        return []
    ends = row.get("intervals", {}).get("clipped")
    return [
        GateLine(
            "clips with clipped samples",
            row["clipped"],
            CLIPPED_SHARE,
            "lower",
            (ends[0], ends[1]) if ends else None,
            f"{row['clipped']:.0%} of its clips have clipped samples",
        )
    ]


def _compare_with_chance(row: Row) -> list[GateLine]:
    """Captions must be followed: tempo and key where prompts state them, otherwise instruments."""
    stated = [name for name in ("tempo_hits", "key_hits") if f"{name}_shuffled" in row and name in row]
    names = stated or [name for name in ("tag_hits",) if f"{name}_shuffled" in row and name in row]
    lines = []
    for name in names:
        title, chance = METRICS[name].title, row[f"{name}_shuffled"]
        ends = row.get("intervals", {}).get(name)
        lines.append(
            GateLine(
                f"{title} above chance",
                row[name],
                chance,
                "higher",
                (ends[0], ends[1]) if ends else None,
                f"{title} {row[name]:.2f} are at the level of chance ({chance:.2f})",
            )
        )
    return lines
