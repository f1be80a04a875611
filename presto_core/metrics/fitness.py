"""Whether a metric is fit for a corpus and an embedding: it must rank real music before the same music made worse.

Two tests (METHOD section 6): real music, its round trip through the codec, added noise and shuffled frames must be
worse in this order; and embeddings shrunk towards their mean, which vary less than music does, must not be better than
real ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from presto_core.metrics.distances import Matrix
from presto_core.metrics.embedding_sets import EmbeddingSets
from presto_core.metrics.intervals import explain_missing_intervals, jackknife_half_width
from presto_core.metrics.replicates import Folds, Replicates, replicate_metrics
from presto_core.metrics.table import METRICS, Metric

SHRINKAGE = 0.8
"""Factor of the distances to the mean."""
SHRUNK = "shrunk towards its mean"
State = Literal["failed", "undecided", "passed"]


@dataclass(frozen=True)
class Fitness:
    """Verdict on one metric.

    Attributes:
        fit: no test failed.
        state: `failed`; `undecided`, where a difference is within its interval and none failed; or `passed`.
        reason: which tests failed, with values; empty if fit.
        undecided: pairs whose difference is within its interval, and fails nothing.
        values: condition -> value.
    """

    fit: bool
    state: State
    reason: str
    undecided: list[str] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)


def check_fitness(
    *,
    real: EmbeddingSets,
    worse: Mapping[str, EmbeddingSets],
    groups: int = 10,
    confidence: float = 0.95,
) -> dict[str, Fitness]:
    """Metric -> verdict, for every metric of quality that the sets allow.

    A test fails if the difference has the wrong sign and its jackknife interval leaves out 0. Sets of the same tracks
    are compared track by track, and all with the same reference, so that little chance is left in the difference.

    Args:
        real: real music (`generated`) compared with other real music (`reference`).
        worse: what was made of the same music -> the same comparison, each worse than the one before: a pass through
            the codec, noise, shuffled frames.
        groups, confidence: as in `estimate_intervals`.

    Returns:
        Nothing if a set has too few tracks for intervals.
    """
    conditions = {"real music": real, **worse}
    everything = conditions | {SHRUNK: shrink_generated(real)}
    if any(explain_missing_intervals(sets) for sets in everything.values()):
        return {}
    metrics = [m for m in METRICS.values() if m.better and m.compute and m.needs != "teacher"]
    replicates = {name: _replicate(sets, metrics, groups) for name, sets in everything.items()}
    # a pair of conditions: the second must not be better
    pairs = [*pairwise(conditions), ("real music", SHRUNK)]
    return {
        metric.name: _check_metric(metric, everything, replicates, pairs, confidence)
        for metric in metrics
        if all(metric.name in found for found in replicates.values())
    }


def shrink_generated(sets: EmbeddingSets, factor: float = SHRINKAGE) -> EmbeddingSets:
    """The generated rows moved towards their mean: mean + factor (x - mean)."""
    mean = np.asarray(sets.generated).mean(0)
    return replace(sets, generated=mean + factor * (sets.generated - mean), teacher=None, teacher_groups=None)


def _replicate(sets: EmbeddingSets, metrics: list[Metric], groups: int) -> dict[str, Replicates]:
    return replicate_metrics(sets, Folds.of(sets, groups), [metric.name for metric in metrics])


def _check_metric(
    metric: Metric,
    conditions: dict[str, EmbeddingSets],
    replicates: dict[str, dict[str, Replicates]],
    pairs: list[tuple[str, str]],
    confidence: float,
) -> Fitness:
    found = {name: replicates[name][metric.name] for name in conditions}
    failures, undecided = [], []
    for better, worse in pairs:
        # how much worse the second is: below 0 it is better
        sign = 1 if metric.better == "lower" else -1
        difference = sign * (found[worse].value - found[better].value)
        sides = _list_sides(conditions[better], conditions[worse], found[better], found[worse])
        half = jackknife_half_width(*sides, confidence=confidence)
        if difference < -half:
            texts = [metric.format_value(found[name].value) for name in (worse, better)]
            failures.append(f"{worse} ({texts[0]}) is better than {better} ({texts[1]})")
        elif difference <= half:
            undecided.append(f"{better} and {worse}")
    values = {name: one.value for name, one in found.items()}
    state: State = "failed" if failures else "undecided" if undecided else "passed"
    return Fitness(not failures, state, "; ".join(failures), undecided, values)


def _list_sides(first: EmbeddingSets, second: EmbeddingSets, a: Replicates, b: Replicates) -> Iterator[Matrix]:
    """Replicates of the difference: over tracks of both at once if they are the same, and over the reference."""
    if _share_tracks(first, second):
        yield np.subtract(b.generated, a.generated)
    else:
        yield np.asarray(a.generated)
        yield np.asarray(b.generated)
    yield np.subtract(b.reference, a.reference)


def _share_tracks(first: EmbeddingSets, second: EmbeddingSets) -> bool:
    """Whether rows of both are of the same tracks, one by one."""
    a, b = first.generated_groups, second.generated_groups
    if a is None or b is None:
        return a is b and len(first.generated) == len(second.generated)
    return np.array_equal(a, b)
