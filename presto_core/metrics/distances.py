"""Distances between embeddings in blocks, and maximum mean discrepancy made of them (METHOD section 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

Embeddings = npt.NDArray[np.floating]
Matrix = npt.NDArray[np.float64]
Labels = npt.NDArray[np.integer]
Mask = npt.NDArray[np.bool_]
Kernel = Callable[[Matrix, Matrix], Matrix]

BLOCK = 2048
"""Rows and columns of the distances that are held at a time: 32 MiB of float64."""
EXACT_MEDIAN_ROWS = 8192
"""Rows whose pairs all take part in the median distance; of more rows, a seeded choice of this many."""


def mmd(
    *,
    generated: Embeddings,
    reference: Embeddings,
    kernel: str = "rbf",
    generated_groups: Labels | None = None,
    reference_groups: Labels | None = None,
) -> float:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012, equation 3); may be slightly negative.

    Rows of one track are not independent: their kernel values within a set, being high, bias the estimate upward. With
    groups, pairs of rows of the same group are left out of all three means.

    Args:
        generated, reference: [N, D] and [M, D].
        kernel: `rbf` with the median squared distance of the reference as bandwidth (of EXACT_MEDIAN_ROWS seeded rows
            if it has more), or `polynomial` (x.y/D + 1)^3 (KID).
        generated_groups, reference_groups: number of each row's track, [N] and [M]; None takes each row as a track.

    Raises:
        ValueError: unknown kernel, embeddings that do not compare, or a set of only one track.
    """
    sums = sum_kernel(
        generated=generated,
        reference=reference,
        kernel=kernel,
        generated_groups=generated_groups,
        reference_groups=reference_groups,
    )
    return sums.estimate()


@dataclass(frozen=True)
class FoldSums:
    """Kernel values summed by the folds of their two rows.

    Attributes:
        sums, counts: [F, G] sum of values, and number of them.
    """

    sums: Matrix
    counts: Matrix

    def mean(self, *, without_row: int | None = None, without_column: int | None = None) -> float:
        """Mean of all values but those of a left-out fold of rows, and of columns."""
        kept_rows = [f for f in range(self.sums.shape[0]) if f != without_row]
        kept_columns = [f for f in range(self.sums.shape[1]) if f != without_column]
        kept = np.ix_(kept_rows, kept_columns)
        return float(self.sums[kept].sum() / self.counts[kept].sum())


@dataclass(frozen=True)
class KernelSums:
    """What MMD, and MMD without one fold, are computed from.

    Attributes:
        within_generated, within_reference, across: sums over pairs of rows.
    """

    within_generated: FoldSums
    within_reference: FoldSums
    across: FoldSums

    def estimate(self, *, without_generated: int | None = None, without_reference: int | None = None) -> float:
        """MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y), if wanted without a fold of either set."""
        g, r = without_generated, without_reference
        within_generated = self.within_generated.mean(without_row=g, without_column=g)
        within_reference = self.within_reference.mean(without_row=r, without_column=r)
        return within_generated + within_reference - 2 * self.across.mean(without_row=g, without_column=r)


def sum_kernel(
    *,
    generated: Embeddings,
    reference: Embeddings,
    kernel: str = "rbf",
    generated_groups: Labels | None = None,
    reference_groups: Labels | None = None,
    generated_folds: Labels | None = None,
    reference_folds: Labels | None = None,
) -> KernelSums:
    """Kernel values of all pairs of rows of different groups, summed by folds (0, 1, ...; no group is in two folds).

    The kernel is that of the whole reference; see `mmd` for the arguments and errors.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel!r} is unknown; choose from {', '.join(KERNELS)}")
    a, b = validate_pair(generated, reference)
    k = KERNELS[kernel](b)
    a_rows = _Rows.of(a, generated_groups, generated_folds, "generated")
    b_rows = _Rows.of(b, reference_groups, reference_folds, "reference")
    # without groups of both sets, no generated row belongs to a reference row
    grouped = generated_groups is not None and reference_groups is not None
    apart = b_rows if grouped else b_rows.relabel(-1 - b_rows.groups)
    sums = KernelSums(_sum_pairs(k, a_rows, a_rows), _sum_pairs(k, b_rows, b_rows), _sum_pairs(k, a_rows, apart))
    if not sums.across.counts.sum():
        raise ValueError("all generated and reference embeddings are of one track; MMD needs two or more")
    return sums


@dataclass(frozen=True)
class _Rows:
    """Embeddings [N, D], the group of each row, and the folds one-hot [N, F]."""

    points: Matrix
    groups: Labels
    folds: Matrix

    @classmethod
    def of(cls, points: Matrix, groups: Labels | None, folds: Labels | None, name: str) -> _Rows:
        groups = np.arange(len(points)) if groups is None else np.asarray(groups)
        folds = np.zeros(len(points), dtype=int) if folds is None else np.asarray(folds)
        if groups.shape != (len(points),) or folds.shape != (len(points),):
            raise ValueError(f"{len(points)} {name} embeddings need as many groups, not {list(groups.shape)}")
        if len(points) and (groups == groups[0]).all():
            raise ValueError(f"all {len(points)} {name} embeddings are of one track; MMD needs two or more")
        return cls(points, groups, np.eye(int(folds.max()) + 1)[folds])

    def relabel(self, groups: Labels) -> _Rows:
        return _Rows(self.points, groups, self.folds)


def _sum_pairs(kernel: Kernel, a: _Rows, b: _Rows) -> FoldSums:
    """Sums over pairs of rows of different groups; `a is b` computes every pair once."""
    sums = np.zeros((a.folds.shape[1], b.folds.shape[1]))
    for rows in iterate_blocks(len(a.points)):
        for columns in iterate_blocks(len(b.points)):
            if a is b and columns.start < rows.start:
                continue
            values = kernel(a.points[rows], b.points[columns])
            values *= a.groups[rows, None] != b.groups[None, columns]
            part = a.folds[rows].T @ values @ b.folds[columns]
            sums += part + part.T if a is b and columns != rows else part
    return FoldSums(sums, _count_pairs(a, b))


def _count_pairs(a: _Rows, b: _Rows) -> Matrix:
    """Pairs of rows of different groups, by folds: all pairs less those within a group."""
    numbers, codes = np.unique(np.concatenate([a.groups, b.groups]), return_inverse=True)
    per_group = []
    for rows, group_codes in ((a, codes[: len(a.groups)]), (b, codes[len(a.groups) :])):
        counts = np.zeros((len(numbers), rows.folds.shape[1]))
        np.add.at(counts, group_codes, rows.folds)
        per_group.append(counts)
    return np.asarray(np.outer(a.folds.sum(0), b.folds.sum(0)) - per_group[0].T @ per_group[1])


def iterate_blocks(count: int, *, start: int = 0) -> Iterator[slice]:
    """Slices of at most BLOCK rows that cover start ... count."""
    return (slice(i, min(i + BLOCK, count)) for i in range(start, count, BLOCK))


def squared_distances(a: Embeddings, b: Embeddings) -> Matrix:
    """[N, D], [M, D] -> [N, M], never negative."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.asarray(squares.clip(min=0), dtype=np.float64)


def median_squared_distance(points: Matrix) -> float:
    """Median squared distance of all pairs of different rows; exact for up to EXACT_MEDIAN_ROWS rows."""
    count = len(points)
    if count > EXACT_MEDIAN_ROWS:
        chosen = np.random.default_rng(0).choice(count, EXACT_MEDIAN_ROWS, replace=False)
        points, count = points[np.sort(chosen)], EXACT_MEDIAN_ROWS
    pairs, filled = np.empty(count * (count - 1) // 2), 0
    for rows in iterate_blocks(count):
        block = squared_distances(points[rows], points[rows.start :])
        for i, distances in enumerate(block):
            later = distances[i + 1 :]
            pairs[filled : filled + len(later)] = later
            filled += len(later)
    return float(np.median(pairs, overwrite_input=True))


def validate_pair(generated: Embeddings, reference: Embeddings) -> tuple[Matrix, Matrix]:
    """Both sets in float64; raises ValueError for shapes that do not fit or values that are not finite."""
    a, b = np.asarray(generated, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"need two sets of at least two embeddings of one width, not {a.shape} and {b.shape}")
    for name, values in (("generated", a), ("reference", b)):
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            raise ValueError(f"{int((~finite).sum())} of {len(values)} {name} embeddings are not finite")
    return a, b


def _rbf_kernel(reference: Matrix) -> Kernel:
    # distances do not depend on the origin, and around the mean they lose no digits
    center = reference.mean(0)
    bandwidth = max(median_squared_distance(reference - center), 1e-12)

    def evaluate(a: Matrix, b: Matrix) -> Matrix:
        values = squared_distances(a - center, b - center)
        values /= -bandwidth
        return cast(Any, np.exp(values, out=values))

    return evaluate


def _polynomial_kernel(reference: Matrix) -> Kernel:
    return lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3


KERNELS: dict[str, Callable[[Matrix], Kernel]] = {"rbf": _rbf_kernel, "polynomial": _polynomial_kernel}
