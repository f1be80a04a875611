"""The interval of the difference between two systems in one metric, on clips of the same prompts."""

from __future__ import annotations

import numpy as np

from presto_core.metrics.distances import Labels
from presto_core.metrics.embedding_sets import EmbeddingSets
from presto_core.metrics.intervals import explain_missing_intervals, jackknife_half_width
from presto_core.metrics.replicates import Folds, replicate_metrics


def estimate_difference(
    one: EmbeddingSets, other: EmbeddingSets, metric: str, *, groups: int, confidence: float
) -> tuple[float, float] | None:
    """Return the interval of `metric(one) - metric(other)`; None for fewer than four tracks.

    A delete-a-group jackknife over tracks of prompts, which are left out of both at once, then of the reference: what
    both systems have in common, such as a hard prompt, cancels.

    Args:
        one, other: sets whose generated rows follow the same prompts, row by row, and with the same reference.
        groups: groups of tracks that are left out in turn.

    Raises:
        ValueError: rows of the two are of different tracks.
    """
    if not np.array_equal(_label_rows(one), _label_rows(other)):
        raise ValueError("the two systems' clips follow different prompts: their tracks differ")
    if explain_missing_intervals(one):
        return None
    folds = Folds.of(one, groups)
    a, b = (replicate_metrics(sets, folds, [metric])[metric] for sets in (one, other))
    half = jackknife_half_width(
        np.subtract(a.generated, b.generated), np.subtract(a.reference, b.reference), confidence=confidence
    )
    return a.value - b.value - half, a.value - b.value + half


def _label_rows(sets: EmbeddingSets) -> Labels:
    return np.arange(len(sets.generated)) if sets.generated_groups is None else sets.generated_groups
