"""Every metric again without each fold of the generated set and of the reference, from one pass over the embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from presto_core.metrics.distances import Labels, sum_kernel, validate_pair
from presto_core.metrics.embedding_sets import EmbeddingSets
from presto_core.metrics.frechet import (
    Gaussian,
    Subset,
    compute_intercept_weights,
    distance_between,
    draw_subsets,
    measure_without_folds,
)
from presto_core.metrics.prdc import find_neighbors
from presto_core.metrics.table import METRICS


@dataclass(frozen=True)
class Folds:
    """Fold of each generated row [N] and of each real row [M], 0, 1, ...; rows of one track are in one fold."""

    generated: Labels
    reference: Labels

    @classmethod
    def of(cls, sets: EmbeddingSets, count: int) -> Folds:
        """At most `count` folds of each set (two at least), with about as many tracks each."""
        return cls(
            deal_tracks(len(sets.generated), sets.generated_groups, count),
            deal_tracks(len(sets.reference), sets.reference_groups, count),
        )

    @property
    def counts(self) -> tuple[int, int]:
        return int(self.generated.max()) + 1, int(self.reference.max()) + 1


@dataclass(frozen=True)
class Replicates:
    """A metric's value, and its values without each fold of the generated set, and of the reference."""

    value: float
    generated: tuple[float, ...]
    reference: tuple[float, ...]


def deal_tracks(rows: int, groups: Labels | None, count: int) -> Labels:
    """Fold of each row, [rows]: tracks in seeded order, dealt in turn into `count` folds, or one per track if fewer."""
    tracks = np.arange(rows) if groups is None else np.unique(groups, return_inverse=True)[1]
    number = int(tracks.max()) + 1
    return np.asarray((np.random.default_rng(0).permutation(number) % min(max(count, 2), number))[tracks])


def replicate_metrics(sets: EmbeddingSets, folds: Folds, names: Iterable[str]) -> dict[str, Replicates]:
    """Metric -> replicates, for each computed metric among `names` that the sets allow, whole and without a fold."""
    wanted = [name for name in names if name in METRICS and METRICS[name].fits(sets)]
    replicates: dict[str, Replicates] = {}
    for family in {METRICS[name].family for name in wanted} - {""}:
        replicates |= FAMILIES[family](sets, folds)
    replicates |= {name: _replicate_plainly(sets, folds, name) for name in wanted if not METRICS[name].family}
    return {name: replicates[name] for name in wanted if name in replicates}


def _replicate_mmd(sets: EmbeddingSets, folds: Folds) -> dict[str, Replicates]:
    """From kernel values summed by folds; the bandwidth stays that of the whole reference."""
    sums = sum_kernel(
        generated=sets.generated,
        reference=sets.reference,
        generated_groups=sets.generated_groups,
        reference_groups=sets.reference_groups,
        generated_folds=folds.generated,
        reference_folds=folds.reference,
    )
    generated, reference = folds.counts
    over_generated = tuple(sums.estimate(without_generated=fold) for fold in range(generated))
    over_reference = tuple(sums.estimate(without_reference=fold) for fold in range(reference))
    return {"mmd": Replicates(sums.estimate(), over_generated, over_reference)}


def _replicate_neighbor_metrics(sets: EmbeddingSets, folds: Folds) -> dict[str, Replicates]:
    """From nearest neighbours by fold; nothing if too few tracks are left without a fold."""
    assert sets.nearest_k is not None
    if _count_fewest_tracks(sets, folds) <= sets.nearest_k:
        return {}
    found = find_neighbors(
        generated=sets.generated,
        reference=sets.reference,
        k=sets.nearest_k,
        generated_groups=sets.generated_groups,
        reference_groups=sets.reference_groups,
        generated_folds=folds.generated,
        reference_folds=folds.reference,
    )
    value = found.measure()
    over_generated = [found.measure(without_generated=fold) for fold in range(folds.counts[0])]
    over_reference = [found.measure(without_reference=fold) for fold in range(folds.counts[1])]
    return {
        name: Replicates(value[name], tuple(v[name] for v in over_generated), tuple(v[name] for v in over_reference))
        for name in value
    }


def _replicate_frechet(sets: EmbeddingSets, folds: Folds) -> dict[str, Replicates]:
    """FD, and FD at infinity from the same subsets, each without the rows of the fold."""
    a, b = validate_pair(sets.generated, sets.reference)
    groups = sets.generated_groups, sets.reference_groups
    subsets = draw_subsets(len(a), len(b), *groups, dim=a.shape[1])
    kept = [subset for subset in subsets if _holds_enough(subset, folds)]
    values, over_generated, over_reference = [], [], []
    for subset in kept:
        rows_a, rows_b = a[subset.generated], b[subset.reference]
        folds_a, folds_b = folds.generated[subset.generated], folds.reference[subset.reference]
        of_a, of_b = Gaussian.fit(rows_a), Gaussian.fit(rows_b)
        values.append(distance_between(of_a, of_b))
        over_generated.append(measure_without_folds(rows_a, folds_a, folds.counts[0], of_b))
        over_reference.append(measure_without_folds(rows_b, folds_b, folds.counts[1], of_a))
    sides = np.array(values)[:, None], np.array(over_generated), np.array(over_reference)
    found = {"fd": Replicates(float(values[0]), tuple(sides[1][0]), tuple(sides[2][0]))}
    if len(kept) == len(subsets):
        weights = compute_intercept_weights(subset.shrinkage for subset in subsets)
        value, generated, reference = (weights @ side for side in sides)
        found["fd_inf"] = Replicates(float(value[0]), tuple(generated), tuple(reference))
    return found


def _holds_enough(subset: Subset, folds: Folds) -> bool:
    """Whether two rows or more are left without any fold."""
    sides = (folds.generated[subset.generated], folds.reference[subset.reference])
    return all(len(side) - np.bincount(side).max() >= 2 for side in sides)


def _replicate_plainly(sets: EmbeddingSets, folds: Folds, name: str) -> Replicates:
    """By computing the metric again and again."""
    metric = METRICS[name]
    assert metric.compute
    value = metric.compute(sets)
    generated = [metric.compute(sets.select(generated=folds.generated != fold)) for fold in range(folds.counts[0])]
    if metric.needs == "teacher":  # not a function of the reference
        return Replicates(value, tuple(generated), (value,) * folds.counts[1])
    reference = [metric.compute(sets.select(reference=folds.reference != fold)) for fold in range(folds.counts[1])]
    return Replicates(value, tuple(generated), tuple(reference))


def _count_fewest_tracks(sets: EmbeddingSets, folds: Folds) -> int:
    """Tracks of a set that remain without its largest fold, of the smaller set."""
    remaining = []
    for side, groups in ((folds.generated, sets.generated_groups), (folds.reference, sets.reference_groups)):
        first = np.arange(len(side)) if groups is None else np.unique(groups, return_index=True)[1]
        remaining.append(len(first) - int(np.bincount(side[first]).max()))
    return min(remaining)


FAMILIES: dict[str, Callable[[EmbeddingSets, Folds], dict[str, Replicates]]] = {
    "kernel": _replicate_mmd,
    "neighbors": _replicate_neighbor_metrics,
    "frechet": _replicate_frechet,
}
"""Family of metrics -> the function that computes all of it at once."""
