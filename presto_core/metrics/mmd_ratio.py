"""The ratio of two systems' MMDs to the same real music, with its interval over tracks: what promotion decides by.

A track is left out on all sides at once: its prompt's clips of both systems, and its real music. What a hard or a rare
track does to all of them cancels, as it does in the ratio; where prompts and real music are of different tracks, the
variances of both add up, as in `intervals`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from presto_core.metrics.distances import Labels, Matrix, sum_kernel


@dataclass(frozen=True)
class GroupedEmbeddings:
    """Embeddings [N, D] with the number of each one's track [N]."""

    values: Matrix
    groups: Labels

    @property
    def tracks(self) -> int:
        return len(np.unique(self.groups))


@dataclass(frozen=True)
class MmdEstimate:
    """A system's MMD to real music, and half the width of its interval."""

    value: float
    half: float

    @property
    def low(self) -> float:
        return self.value - self.half

    @property
    def high(self) -> float:
        return self.value + self.half


@dataclass(frozen=True)
class MmdRatio:
    """MMDs of two systems, and how they vary over tracks.

    Attributes:
        mine, theirs: MMD of each; the ratio is `mine / theirs`.
        covariance: [2, 2] of both, by the jackknife.
        quantile: half the width of an interval in standard errors.
    """

    mine: float
    theirs: float
    covariance: Matrix
    quantile: float

    def compute_excess(self, ratio: float) -> MmdEstimate:
        """Estimate `mine - ratio * theirs`, which has an interval where `theirs` is too small to divide by."""
        weights = np.array([1.0, -ratio])
        error = math.sqrt(max(weights @ self.covariance @ weights, 0.0))
        return MmdEstimate(self.mine - ratio * self.theirs, self.quantile * error)

    @property
    def ratio(self) -> float:
        """The estimate; infinite if `theirs` is not above zero."""
        return self.mine / self.theirs if self.theirs > 0 else math.inf

    @property
    def interval(self) -> tuple[float, float]:
        """All ratios from 0 on whose excess has an interval with 0 in it (Fieller 1954).

        The upper end is infinite if `theirs` is not above zero by more than chance.
        """
        # (mine - r theirs)^2 = quantile^2 (v_mm - 2 r v_mt + r^2 v_tt), a r^2 - 2 b r + c = 0
        variances = self.quantile**2 * self.covariance
        a, c = self.theirs**2 - variances[1, 1], self.mine**2 - variances[0, 0]
        b = self.mine * self.theirs - variances[0, 1]
        root = math.sqrt(max(b * b - a * c, 0.0))
        if self.theirs > 0 and a > 0:
            return float(max((b - root) / a, 0.0)), float(max((b + root) / a, 0.0))
        # between or beyond the roots, whichever has the estimate: from where the excess is no longer above 0
        return float(max((b - root) / a, 0.0) if self.mine > 0 and c > 0 and a < 0 else 0.0), math.inf


def compare_mmd(
    mine: GroupedEmbeddings,
    theirs: GroupedEmbeddings,
    reference: GroupedEmbeddings,
    *,
    groups: int,
    confidence: float,
) -> MmdRatio:
    """Compare two systems by a delete-a-group jackknife over tracks.

    Args:
        groups: groups of tracks that are left out in turn, at most as many as there are tracks.
        confidence: probability that a two-sided interval covers.

    Raises:
        ValueError: clips or real music are of fewer than three tracks, or not finite.
    """
    folds = _deal_folds([mine, theirs, reference], groups)
    value, without = _replicate(mine, reference, folds[0], folds[2])
    other_value, other_without = _replicate(theirs, reference, folds[1], folds[2])
    covariance = _estimate_covariance([without, other_without])
    return MmdRatio(value, other_value, covariance, _find_quantile(folds, confidence))


def estimate_mmd(
    one: GroupedEmbeddings, reference: GroupedEmbeddings, *, groups: int, confidence: float
) -> MmdEstimate:
    """Estimate a system's MMD by the same jackknife, with the same arguments and errors."""
    folds = _deal_folds([one, reference], groups)
    value, without = _replicate(one, reference, *folds)
    variance = float(_estimate_covariance([without])[0, 0])
    return MmdEstimate(value, _find_quantile(folds, confidence) * math.sqrt(variance))


def _deal_folds(sides: Sequence[GroupedEmbeddings], count: int) -> list[Labels]:
    """Fold of each row of each side: a track is in the same fold on all, and each fold has as many tracks of a side."""
    tracks = np.unique(np.concatenate([side.groups for side in sides]))
    membership = np.sum([np.isin(tracks, side.groups) * 2**bit for bit, side in enumerate(sides)], axis=0)
    # in turn over the tracks of the same sides, which are in seeded order
    order = np.lexsort((np.random.default_rng(0).permutation(len(tracks)), membership))
    folds = np.empty(len(tracks), dtype=np.int64)
    folds[order] = np.arange(len(tracks)) % min(count, len(tracks))
    for side in sides:
        in_fold = np.bincount(folds[np.isin(tracks, side.groups)])
        if in_fold.sum() - in_fold.max() < 2:
            counts = ", ".join(str(side.tracks) for side in sides)
            raise ValueError(f"sets are of {counts} tracks, too few for an interval: MMD needs two without a fold")
    return [folds[np.searchsorted(tracks, side.groups)] for side in sides]


def _replicate(
    one: GroupedEmbeddings, reference: GroupedEmbeddings, folds: Labels, reference_folds: Labels
) -> tuple[float, list[float]]:
    """MMD, and MMD without each fold on both sides; the bandwidth stays that of the whole reference."""
    sums = sum_kernel(
        generated=one.values,
        reference=reference.values,
        generated_groups=one.groups,
        reference_groups=reference.groups,
        generated_folds=folds,
        reference_folds=reference_folds,
    )
    count = 1 + int(max(folds.max(), reference_folds.max()))
    return sums.estimate(), [sums.estimate(without_generated=f, without_reference=f) for f in range(count)]


def _estimate_covariance(without: Sequence[Sequence[float]]) -> Matrix:
    """(G - 1)/G sum (theta_g - mean)(theta_g - mean)^T, with G - 1 degrees of freedom."""
    values = np.asarray(without, dtype=np.float64)
    return np.atleast_2d(np.cov(values, bias=True)) * (values.shape[1] - 1)


def _find_quantile(folds: Sequence[Labels], confidence: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, max(int(side.max()) for side in folds)))
