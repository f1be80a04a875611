"""Intervals of metrics by the delete-a-group jackknife, over the tracks of generated clips and over the reference.

Tracks are dealt into groups; a metric is computed again without each group of the generated set, then of the
reference, and the variances of both sides add up (Kott 2001). A bootstrap would repeat rows, which nearest-neighbour
metrics and the unbiased MMD take for perfect matches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from presto_core.metrics.distances import Labels, Matrix
from presto_core.metrics.embedding_sets import EmbeddingSets
from presto_core.metrics.replicates import Folds, Replicates, deal_tracks, replicate_metrics
from presto_core.metrics.table import METRICS, Metric

MIN_TRACKS = 4
"""With fewer tracks, a set gives no intervals."""


def estimate_intervals(
    sets: EmbeddingSets, names: Iterable[str], *, groups: int, confidence: float
) -> dict[str, tuple[float, float]]:
    """Metric -> lower and upper end, for each computed metric among `names` that these sets allow.

    They are for the metric's expectation at this size of sets: FD's are around its biased value. Where both
    distributions are the same, MMD's are wider than needed, as its variance is then of second order; where sets hardly
    overlap, and a few outlying rows decide, those of precision and recall cover a few per cent less than they should.

    Args:
        groups: groups of tracks that each set is divided into, at most as many as it has tracks.
        confidence: probability that an interval covers.

    Returns:
        Nothing if a set has fewer than four tracks, see `explain_missing_intervals`; precision, recall, density and
        coverage are left out if a set without one of its groups has no more than nearest_k tracks.
    """
    if explain_missing_intervals(sets):
        return {}
    replicates = replicate_metrics(sets, Folds.of(sets, groups), names)
    return {name: _find_interval(METRICS[name], found, sets, confidence) for name, found in replicates.items()}


def explain_missing_intervals(sets: EmbeddingSets) -> str:
    """Why these sets give no intervals; empty if they do."""
    for side in ("generated", "reference"):
        tracks = count_tracks(sets, side)
        if tracks < MIN_TRACKS:
            return f"no intervals: {side} clips are of {tracks} track(s), and intervals need {MIN_TRACKS}"
    return ""


def count_tracks(sets: EmbeddingSets, side: str) -> int:
    """Number of tracks of the `generated` or the `reference` rows."""
    groups = getattr(sets, f"{side}_groups")
    return len(getattr(sets, side)) if groups is None else len(np.unique(groups))


def assign_groups(groups: Labels, count: int) -> list[Labels]:
    """Numbers of tracks, dealt into at most `count` parts: what to leave out in turn."""
    folds = deal_tracks(len(groups), groups, count)
    return [np.unique(groups[folds == fold]) for fold in range(int(folds.max()) + 1)]


def jackknife_half_width(*sides: Sequence[float] | Matrix, confidence: float) -> float:
    """Half the width of an interval, from replicates of independent sides; each side needs two or more.

    Args:
        sides: values without each group, of one set; then of another.
    """
    from scipy.stats import t

    counts = np.array([len(side) for side in sides])
    # variance of a side: (G - 1)/G sum (theta_g - mean)^2, with G - 1 degrees of freedom
    variances = np.array([(len(side) - 1) * np.var(side) for side in sides])
    total = variances.sum()
    if total == 0:
        return 0.0
    freedom = total**2 / (variances**2 / (counts - 1)).sum()  # Welch-Satterthwaite
    return float(t.ppf((1 + confidence) / 2, freedom) * np.sqrt(total))


@dataclass(frozen=True)
class _Scale:
    """A metric's own scale to one on which its errors are symmetric, and back."""

    forward: Callable[[Matrix], Matrix]
    backward: Callable[[Matrix], Matrix]


def _choose_scale(metric: Metric, sets: EmbeddingSets) -> _Scale:
    if metric.share_of:  # log odds; half a track more on both sides keeps 0 and 1 finite
        n = count_tracks(sets, metric.share_of)
        return _Scale(
            lambda p: np.log((p * n + 0.5) / (n * (1 - p) + 0.5)),
            lambda z: np.clip(((n + 1) / (1 + np.exp(-z)) - 0.5) / n, 0, 1),
        )
    if metric.counts_neighbors:  # logarithm; one neighbour more keeps 0 finite
        least = 1 / (count_tracks(sets, "generated") * (sets.nearest_k or 1))
        return _Scale(lambda x: np.log(x + least), lambda z: np.maximum(np.exp(z) - least, 0))
    return _Scale(lambda x: x, lambda z: np.maximum(z, metric.least))


def _find_interval(metric: Metric, found: Replicates, sets: EmbeddingSets, confidence: float) -> tuple[float, float]:
    scale = _choose_scale(metric, sets)
    value, generated, reference = (
        scale.forward(np.asarray(values, dtype=np.float64))
        for values in (found.value, found.generated, found.reference)
    )
    half = jackknife_half_width(generated, reference, confidence=confidence)
    low, high = (float(end) for end in scale.backward(value + half * np.array([-1.0, 1.0])))
    if metric.share_of and found.value in (0.0, 1.0):
        # none or all: the jackknife sees no variation. A share p of n tracks is 0 with probability (1 - p)^n
        margin = 1 - (1 - confidence) ** (1 / count_tracks(sets, metric.share_of))
        low, high = max(0.0, min(low, found.value - margin)), min(1.0, max(high, found.value + margin))
    return low, high
