"""What a teacher's gate reads in a report beside its table: the chosen sampler on the validation split, with intervals.

A gate chooses teachers, so test clips take no part in it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from pipelines.evaluate.quality import Compared, make_sets, measure_clips
from pipelines.evaluate.sampling import SystemSamples
from pipelines.evaluate.systems import REAL_TRAIN
from presto_core.config.evaluation import EvaluateConfig
from presto_core.metrics.adherence.interval import hit_interval
from presto_core.metrics.intervals import estimate_intervals
from presto_core.metrics.paired_difference import estimate_difference
from presto_core.metrics.table import METRICS, headline_metric
from presto_core.metrics.teacher_gate import (
    NEIGHBOR_METRICS,
    find_best,
    find_teacher_rows,
    list_step_pairs,
    name_pair,
    select_steps,
)


def measure_gate_rows(
    rows: list[dict[str, Any]],
    compared: list[Compared],
    validated: list[Compared],
    config: EvaluateConfig,
) -> dict[str, Any]:
    """Return `gate` of report.json: `teacher`, `floor` and `step_differences`; empty without validation clips.

    `teacher` is the row of the sampler with most steps that is best on the validation split, `floor` that of clips of
    the training split, both of the same number of clips against the music of the validation split.

    Args:
        rows: the table's rows, with the headline metric on the validation split.
        compared, validated: systems on the test and on the validation split, each with real music first.
    """
    teachers = find_teacher_rows({"systems": rows})
    if not validated or not teachers:
        return {}
    by_name = {one.system.name: one for one in validated}
    reference = validated[0]
    best = find_best(select_steps(teachers, max(row["steps"] for row in teachers)), teachers)
    teacher, floor = by_name[best["name"]], next(one for one in compared if one.system.name == REAL_TRAIN)
    count = min(len(teacher.samples), len(floor.samples))
    return {
        "clips": count,
        "teacher": _measure(cut_clips(teacher, count), reference, config),
        "floor": _measure(cut_clips(floor, count), reference, config),
        "step_differences": {
            name_pair(many, few): ends
            for many, few in list_step_pairs(teachers)
            if (ends := _compare(by_name[few["name"]], by_name[many["name"]], reference, config))
        },
    }


def cut_clips(one: Compared, count: int) -> Compared:
    """Return a system with its first `count` clips."""
    arrays = {name: values[:count] for name, values in one.samples.arrays.items()}
    prompts = one.prompts.take(np.arange(min(count, len(one.prompts))))
    return replace(one, samples=SystemSamples(arrays), prompts=prompts)


def _measure(one: Compared, reference: Compared, config: EvaluateConfig) -> dict[str, Any]:
    """Neighbour metrics, prompt adherence and audio health, with intervals."""
    sets = make_sets(one, reference, None, nearest_k=config.nearest_k)
    names = [name for name in NEIGHBOR_METRICS if METRICS[name].fits(sets)]
    groups = config.interval_groups
    found = estimate_intervals(sets, names, groups=groups, confidence=config.confidence) if groups else {}
    row = measure_clips(one, reference, config)
    row["intervals"] |= {name: list(ends) for name, ends in found.items()} | _estimate_clipping(one, config)
    return row | {name: sets.prdc[name] for name in names}


def _estimate_clipping(one: Compared, config: EvaluateConfig) -> dict[str, list[float]]:
    clipped = (one.samples.clips["clipped_samples"] > 0).astype(float)
    if len(clipped) < 2:
        return {}
    numbers = np.arange(len(clipped))  # clips of one prompt start from noise of their own, so that each counts
    ends = hit_interval(hits=clipped, chances=np.ones_like(clipped), groups=numbers, confidence=config.confidence)
    return {"clipped": list(ends)}


def _compare(few: Compared, many: Compared, reference: Compared, config: EvaluateConfig) -> list[float]:
    """Interval of the headline metric of few steps minus that of many; empty if these clips give none."""
    if not config.interval_groups:
        return []
    ends = estimate_difference(
        make_sets(few, reference, None),
        make_sets(many, reference, None),
        headline_metric().name,
        groups=config.interval_groups,
        confidence=config.confidence,
    )
    return list(ends or ())
