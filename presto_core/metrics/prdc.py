"""Precision, recall, density and coverage by nearest neighbours (Kynkäänniemi et al. 2019, Naeem et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from presto_core.metrics.distances import (
    Embeddings,
    Labels,
    Mask,
    Matrix,
    iterate_blocks,
    squared_distances,
    validate_pair,
)


def prdc(*, generated: Embeddings, reference: Embeddings, k: int) -> dict[str, float]:
    """Fidelity (precision, density) and diversity (recall, coverage) of a generated set, in blocks of distances.

    Args:
        generated, reference: [N, D] and [M, D].
        k: neighbours that span each point's ball.

    Raises:
        ValueError: a set has no more than k points, or embeddings do not compare.
    """
    return find_neighbors(generated=generated, reference=reference, k=k).measure()


def find_neighbors(
    *,
    generated: Embeddings,
    reference: Embeddings,
    k: int,
    generated_folds: Labels | None = None,
    reference_folds: Labels | None = None,
) -> Neighbors:
    """Compare all generated points with all real ones, once for every fold that may be left out.

    Args:
        generated_folds, reference_folds: fold of each row, 0, 1, ...; None makes one fold of all, never left out.

    Raises:
        ValueError: a set, or what is left of it without a fold, has no more than k points.
    """
    a, b = _Points.of(generated, generated_folds), _Points.of(reference, reference_folds)
    if min(a.fewest, b.fewest) <= k:
        counts = f"{a.fewest} generated and {b.fewest} reference"
        raise ValueError(f"k={k} neighbours need more than {k} samples in each set, not {counts} ones")
    validate_pair(generated, reference)
    center = b.rows.mean(0)  # distances do not depend on the origin, and around the mean they lose no digits
    a.rows -= center
    b.rows -= center
    return _compare(a, b, k)


@dataclass(frozen=True)
class Neighbors:
    """Who lies in whose ball; index 0 of the first axis is with all points, 1 + f is without fold f of the other set.

    Attributes:
        balls_around: [1 + H, N] real balls that each generated point is in.
        is_covered: [1 + G, M] whether each real point is in a generated ball.
        is_reached: [1 + G, M] whether a generated point is in the ball of each real point.
        is_reached_without: [H, M] the same with balls computed without fold h of the reference, all points generated.
        generated_folds, reference_folds: [N] and [M], rows in this order.
    """

    k: int
    balls_around: Labels
    is_covered: Mask
    is_reached: Mask
    is_reached_without: Mask
    generated_folds: Labels
    reference_folds: Labels

    def measure(
        self, *, without_generated: int | None = None, without_reference: int | None = None
    ) -> dict[str, float]:
        """The four numbers, if wanted without one fold of one set."""
        g = 0 if without_generated is None else 1 + without_generated
        h = 0 if without_reference is None else 1 + without_reference
        balls = self.balls_around[h, self.generated_folds != without_generated]
        kept = self.reference_folds != without_reference
        reached = self.is_reached[g] if without_reference is None else self.is_reached_without[without_reference]
        return {
            "precision": float((balls > 0).mean()),
            "recall": float(self.is_covered[g, kept].mean()),
            "density": float(balls.mean() / self.k),
            "coverage": float(reached[kept].mean()),
        }


@dataclass
class _Points:
    """Rows sorted by fold, and where each fold begins and ends."""

    rows: Matrix
    folds: Labels
    slices: list[slice]

    @classmethod
    def of(cls, points: Embeddings, folds: Labels | None) -> _Points:
        folds = np.zeros(len(points), dtype=int) if folds is None else np.asarray(folds)
        order = np.argsort(folds, kind="stable")
        edges = np.concatenate([[0], np.cumsum(np.bincount(folds, minlength=1))])
        slices = [slice(int(i), int(j)) for i, j in zip(edges[:-1], edges[1:])]
        return cls(np.array(points[order], dtype=np.float64), folds[order], slices)

    @property
    def fewest(self) -> int:
        """Points that remain without the largest fold."""
        largest = max(s.stop - s.start for s in self.slices) if len(self.slices) > 1 else 0
        return len(self.rows) - largest

    def split_by_fold(self, block: slice) -> Iterator[tuple[int, slice]]:
        """Folds that have rows in a block, and which columns of the block these are."""
        for fold, span in enumerate(self.slices):
            first, last = max(span.start, block.start), min(span.stop, block.stop)
            if first < last:
                yield fold, slice(first - block.start, last - block.start)


def _compare(a: _Points, b: _Points, k: int) -> Neighbors:
    radius_a, radius_b = _measure_radii(a, k), _measure_radii(b, k)
    balls = np.zeros((len(radius_b), len(a.rows)), dtype=np.int64)
    covered = np.zeros((len(radius_a), len(b.rows)), dtype=bool)
    nearest = np.full((len(a.slices), len(b.rows)), np.inf)
    for rows in iterate_blocks(len(b.rows)):
        for columns in iterate_blocks(len(a.rows)):
            distances = squared_distances(b.rows[rows], a.rows[columns])
            for h, radius in enumerate(radius_b):
                balls[h, columns] += (distances < radius[rows, None]).sum(0)
            for g, radius in enumerate(radius_a):
                covered[g, rows] |= (distances < radius[None, columns]).any(1)
            for fold, part in a.split_by_fold(columns):
                nearest[fold, rows] = np.minimum(nearest[fold, rows], distances[:, part].min(1))
    folds = range(len(radius_a) - 1)
    kept = [nearest, *(np.delete(nearest, fold, axis=0) for fold in folds)]
    reached = np.stack([distances.min(0) < radius_b[0] for distances in kept])
    reached_without = nearest.min(0) < radius_b[1:]
    return Neighbors(k, balls, covered, reached, reached_without, a.folds, b.folds)


def _measure_radii(points: _Points, k: int) -> Matrix:
    """[1 + F, N] squared distance of each point to its k-th neighbour, of all points and of those without fold f.

    A point of fold f has radius -1 without that fold: nothing lies in its ball. One fold is never left out: [1, N].
    """
    count, folds = len(points.rows), len(points.slices)
    radii = np.empty((1 + folds if folds > 1 else 1, count))
    for rows in iterate_blocks(count):
        smallest = np.full((folds, rows.stop - rows.start, k), np.inf)  # of each fold
        for columns in iterate_blocks(count):
            distances = squared_distances(points.rows[rows], points.rows[columns])
            own = np.arange(max(rows.start, columns.start), min(rows.stop, columns.stop))
            distances[own - rows.start, own - columns.start] = np.inf
            for fold, part in points.split_by_fold(columns):
                smallest[fold] = _keep_smallest(np.concatenate([smallest[fold], distances[:, part]], axis=1), k)
        radii[0, rows] = _find_kth(smallest, k)
        for fold in range(len(radii) - 1):
            others = _find_kth(np.delete(smallest, fold, axis=0), k)
            radii[1 + fold, rows] = np.where(points.folds[rows] == fold, -1.0, others)
    return radii


def _keep_smallest(distances: Matrix, k: int) -> Matrix:
    """[B, C] -> the k smallest of each row, in any order."""
    return np.asarray(np.partition(distances, k - 1, axis=1)[:, :k])


def _find_kth(smallest: Matrix, k: int) -> Matrix:
    """[F, B, k] smallest distances by fold -> the k-th smallest of all, [B]."""
    together = np.moveaxis(smallest, 0, 1).reshape(smallest.shape[1], -1)
    return np.asarray(np.partition(together, k - 1, axis=1)[:, k - 1])
