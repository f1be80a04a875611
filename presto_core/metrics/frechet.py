"""Fréchet distance between Gaussians fitted to two sets of embeddings, and its value for infinitely many samples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from presto_core.metrics.distances import Embeddings, Labels, Mask, Matrix, validate_pair

SHRINKAGES = (Fraction(1), Fraction(4, 3), Fraction(3, 2), Fraction(2), Fraction(3), Fraction(4))
"""Sizes that the distance is extrapolated from: the whole sets, and subsets of 1/shrinkage of their tracks."""
MIN_ROWS_TO_EXTRAPOLATE = 4


def frechet_distance(*, generated: Embeddings, reference: Embeddings) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) between the Gaussians fitted to two sets (Heusel et al. 2017).

    Biased upward for small sets: compare only equal sizes, next to a real-against-real floor.

    Args:
        generated, reference: [N, D] and [M, D], each with at least two rows.

    Raises:
        ValueError: shapes do not fit, or a value is not finite.
    """
    a, b = validate_pair(generated, reference)
    return distance_between(Gaussian.fit(a), Gaussian.fit(b))


def frechet_distance_infinity(
    *,
    generated: Embeddings,
    reference: Embeddings,
    generated_groups: Labels | None = None,
    reference_groups: Labels | None = None,
    extrapolate_reference: bool = True,
    seed: int = 0,
) -> float:
    """Fréchet distance for infinitely many samples: a line through its values at several sizes n, over 1/n, at 1/n = 0.

    The bias of a Fréchet distance is proportional to 1/n + 1/m to first order (Chong & Forsyth 2020), so both sets are
    reduced by the same factor. Subsets are of whole tracks, for rows of one track are not independent. Free of this
    bias, the value may be slightly negative where the distributions are the same. The line holds where subsets have
    more rows than dimensions: with n < 2 D the result still depends on n.

    Args:
        generated, reference: [N, D] and [M, D], each with at least four rows.
        generated_groups, reference_groups: number of each row's track; fewer than four tracks are taken row by row.
        extrapolate_reference: False reduces the generated set alone, as fadtk does (Gui et al. 2024); the bias of the
            reference then stays.
        seed: of the choice of subsets.

    Raises:
        ValueError: embeddings do not compare, or are fewer than four.
    """
    a, b = validate_pair(generated, reference)
    subsets = draw_subsets(
        len(a), len(b), generated_groups, reference_groups, dim=a.shape[1], both=extrapolate_reference, seed=seed
    )
    values = [distance_between(Gaussian.fit(a[s.generated]), Gaussian.fit(b[s.reference])) for s in subsets]
    return float(compute_intercept_weights(s.shrinkage for s in subsets) @ values)


@dataclass(frozen=True)
class Subset:
    """Rows of both sets: 1/shrinkage of their tracks.

    Attributes:
        generated, reference: [N] and [M] booleans.
    """

    shrinkage: float
    generated: Mask
    reference: Mask


def draw_subsets(
    generated_rows: int,
    reference_rows: int,
    generated_groups: Labels | None,
    reference_groups: Labels | None,
    *,
    dim: int,
    both: bool = True,
    seed: int = 0,
) -> list[Subset]:
    """The whole sets, and seeded subsets of them down to 2 D rows, but of a quarter at least and a half at most.

    Subsets of one size hold every track equally often (those of 1/2, 1/3, 1/4 are disjoint), so that their mean
    differs from the whole sets' value by its bias, and little by chance.
    """
    fewest = min(generated_rows, reference_rows) if both else generated_rows
    if fewest < MIN_ROWS_TO_EXTRAPOLATE:
        raise ValueError(f"FD at infinity needs {MIN_ROWS_TO_EXTRAPOLATE} rows or more of each set, not {fewest}")
    rng = np.random.default_rng(seed)
    tracks = [_index_tracks(generated_rows, generated_groups), _index_tracks(reference_rows, reference_groups)]
    fewest_tracks = min(int(indices.max()) + 1 for indices in (tracks if both else tracks[:1]))
    most = min(float(np.clip(fewest / (2 * dim), 2, 4)), fewest_tracks / 2)
    everything = np.ones(reference_rows, dtype=bool)
    subsets = []
    for shrinkage in (s for s in SHRINKAGES if s <= most):
        for rows_a, rows_b in zip(*(_split_rows(indices, shrinkage, rng) for indices in tracks)):
            subsets.append(Subset(float(shrinkage), rows_a, rows_b if both else everything))
    return subsets


def compute_intercept_weights(shrinkages: Iterable[float]) -> Matrix:
    """Weights [S] of values whose sum is the intercept of their least-squares line; every size counts the same."""
    x = np.asarray(list(shrinkages))
    counts = (x[:, None] == x[None]).sum(1)
    return np.asarray(np.polyfit(x, np.eye(len(x)), 1, w=counts**-0.5)[1])


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and covariance [D, D] of a set."""

    mean: Matrix
    cov: Matrix

    @classmethod
    def fit(cls, rows: Matrix) -> Gaussian:
        """Sample mean and unbiased sample covariance of [N, D]."""
        return cls(rows.mean(0), np.atleast_2d(np.cov(rows, rowvar=False)))

    @cached_property
    def root(self) -> Matrix:
        """Symmetric square root of the covariance."""
        values, vectors = np.linalg.eigh(self.cov)
        return np.asarray((vectors * np.sqrt(values.clip(min=0))) @ vectors.T)


def distance_between(a: Gaussian, b: Gaussian) -> float:
    """Squared Fréchet (Wasserstein-2) distance of two Gaussians; takes the square root of `a`'s covariance only."""
    trace = float(np.trace(a.cov) + np.trace(b.cov))
    return _combine(shift=a.mean - b.mean, trace=trace, cross=a.root @ b.cov @ a.root)


def measure_without_folds(rows: Matrix, folds: Labels, count: int, against: Gaussian) -> list[float]:
    """Distances to a Gaussian of the rows [N, D] without each of `count` folds: one eigenvalue problem each.

    The second moments of all rows are computed once, and a fold's are subtracted.
    """
    deviations = rows - rows.mean(0)
    # the covariance of rows times S1^(1/2) is S1^(1/2) S2 S1^(1/2)
    projected = deviations @ against.root
    moment, squares = projected.T @ projected, (deviations**2).sum(1)
    distances = []
    for fold in range(count):
        out = folds == fold
        kept = len(rows) - int(out.sum())
        mean = -deviations[out].sum(0) / kept  # deviations add up to 0
        projected_mean = mean @ against.root
        left_out = projected[out].T @ projected[out] + kept * np.outer(projected_mean, projected_mean)
        trace = (squares[~out].sum() - kept * mean @ mean) / (kept - 1) + np.trace(against.cov)
        shift = rows.mean(0) + mean - against.mean
        distances.append(_combine(shift=shift, trace=float(trace), cross=(moment - left_out) / (kept - 1)))
    return distances


def _combine(*, shift: Matrix, trace: float, cross: Matrix) -> float:
    """The distance from m1 - m2, tr S1 + tr S2, and S1^(1/2) S2 S1^(1/2)."""
    # tr (S1 S2)^(1/2) = sum of square roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric
    trace_root = np.sqrt(np.linalg.eigvalsh(cross).clip(min=0)).sum()
    # never below zero but by rounding, as for two sets that are the same
    return max(0.0, float(shift @ shift + trace - 2 * trace_root))


def _index_tracks(rows: int, groups: Labels | None) -> Labels:
    """Number of each row's track, 0 ... T - 1; rows count as tracks if there are fewer than four."""
    indices = np.arange(rows) if groups is None else np.unique(groups, return_inverse=True)[1]
    return indices if indices.max() + 1 >= MIN_ROWS_TO_EXTRAPOLATE else np.arange(rows)


def _split_rows(tracks: Labels, shrinkage: Fraction, rng: np.random.Generator) -> list[Mask]:
    """Subsets as [N] booleans, each of all rows of 1/shrinkage of the tracks.

    The tracks are cut into as many parts as the numerator; a subset leaves one out (4/3, 3/2) or is one (2, 3, 4).
    """
    parts = rng.permutation(int(tracks.max()) + 1) % shrinkage.numerator
    if shrinkage.denominator > 1:
        return [np.asarray(parts[tracks] != part) for part in range(shrinkage.numerator)]
    return [np.asarray(parts[tracks] == part) for part in range(shrinkage.numerator)]
