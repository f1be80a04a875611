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

MAX_DRAWS = 16
"""Most choices of one row per track; of a track with more rows, so many take part, spread over all of them."""


def prdc(
    *,
    generated: Embeddings,
    reference: Embeddings,
    k: int,
    generated_groups: Labels | None = None,
    reference_groups: Labels | None = None,
) -> dict[str, float]:
    """Fidelity (precision, density) and diversity (recall, coverage) of a generated set, in blocks of distances.

    Rows of one track are not independent: as each other's nearest neighbours they shrink the balls, and precision and
    coverage with them. With groups, one row of each track is compared at a time, and the values are means over such
    draws, in which every row takes part: what as many independent rows as there are tracks give. A row and a ball of
    the same track, of both sets, are not compared. Without groups the values are those of Naeem et al. (2020).

    Args:
        generated, reference: [N, D] and [M, D].
        k: neighbours that span each point's ball.
        generated_groups, reference_groups: number of each row's track, [N] and [M]; equal numbers in both are the same
            track. None takes each row as a track.

    Raises:
        ValueError: a set has no more than k tracks, or embeddings do not compare.
    """
    return find_neighbors(
        generated=generated,
        reference=reference,
        k=k,
        generated_groups=generated_groups,
        reference_groups=reference_groups,
    ).measure()


def find_neighbors(
    *,
    generated: Embeddings,
    reference: Embeddings,
    k: int,
    generated_groups: Labels | None = None,
    reference_groups: Labels | None = None,
    generated_folds: Labels | None = None,
    reference_folds: Labels | None = None,
) -> Neighbors:
    """Compare generated with real points, once for every fold that may be left out; see `prdc`.

    Args:
        generated_folds, reference_folds: fold of each row, 0, 1, ..., no track in two; None makes one fold of all,
            never left out.

    Raises:
        ValueError: a set, or what is left of it without a fold, has no more than k tracks.
    """
    draws_a, draws_b = _draw_rows(len(generated), generated_groups), _draw_rows(len(reference), reference_groups)
    count = max(len(draws_a), len(draws_b))
    # without groups of both sets, no generated row belongs to a reference row
    grouped = generated_groups is not None and reference_groups is not None
    a = [_Points.of(generated, generated_folds, rows, generated_groups if grouped else None) for rows in draws_a]
    b = [_Points.of(reference, reference_folds, rows, reference_groups if grouped else None) for rows in draws_b]
    _check_counts(a[0].fewest, b[0].fewest, k)
    validate_pair(generated, reference)
    # distances do not depend on the origin, and around the mean they lose no digits
    center = np.asarray(reference, dtype=np.float64).mean(0)
    for points in (*a, *b):
        points.rows -= center
    return Neighbors([_compare(a[i % len(a)], b[i % len(b)], k) for i in range(count)])


def _check_counts(generated: int, reference: int, k: int) -> None:
    if min(generated, reference) <= k:
        counts = f"{generated} generated and {reference} reference"
        raise ValueError(f"k={k} neighbours need samples of more than {k} tracks in each set, not {counts} ones")


def _draw_rows(count: int, groups: Labels | None) -> list[Labels]:
    """Choices of one row per track, in which rows take part about equally often; one of all rows without groups."""
    if groups is None:
        return [np.arange(count)]
    order = np.argsort(groups, kind="stable")
    tracks, first, sizes = np.unique(np.asarray(groups)[order], return_index=True, return_counts=True)
    draws = min(int(sizes.max(initial=1)), MAX_DRAWS)
    # each track starts at another patch, or a draw would be of all first patches; by its number (Knuth's multiplicative
    # hash), so that a track's draws do not depend on which others there are
    offsets = (tracks.astype(np.int64) * 2654435761 % 2**32) >> 16
    return [np.asarray(order[first + (draw * sizes // draws + offsets) % sizes]) for draw in range(draws)]


@dataclass(frozen=True)
class Neighbors:
    """Who lies in whose ball, for each draw of one row per track."""

    draws: list[Draw]

    def measure(
        self, *, without_generated: int | None = None, without_reference: int | None = None
    ) -> dict[str, float]:
        """The four numbers, if wanted without one fold of one set: means over draws."""
        values = [
            draw.measure(without_generated=without_generated, without_reference=without_reference)
            for draw in self.draws
        ]
        return {name: float(np.mean([value[name] for value in values])) for name in values[0]}


@dataclass(frozen=True)
class Draw:
    """Balls of one draw; index 0 of the first axis is with all points, 1 + f is without fold f of the other set.

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
    """Rows of a draw sorted by fold, and where each fold begins and ends; groups only if both sets have them."""

    rows: Matrix
    folds: Labels
    slices: list[slice]
    groups: Labels | None

    @classmethod
    def of(cls, points: Embeddings, folds: Labels | None, chosen: Labels, groups: Labels | None) -> _Points:
        folds = np.zeros(len(chosen), dtype=int) if folds is None else np.asarray(folds)[chosen]
        order = np.argsort(folds, kind="stable")
        edges = np.concatenate([[0], np.cumsum(np.bincount(folds, minlength=1))])
        slices = [slice(int(i), int(j)) for i, j in zip(edges[:-1], edges[1:])]
        rows = chosen[order]
        kept_groups = None if groups is None else np.asarray(groups)[rows]
        return cls(np.array(points[rows], dtype=np.float64), folds[order], slices, kept_groups)

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


def _compare(a: _Points, b: _Points, k: int) -> Draw:
    radius_a, radius_b = _measure_radii(a, k), _measure_radii(b, k)
    balls = np.zeros((len(radius_b), len(a.rows)), dtype=np.int64)
    covered = np.zeros((len(radius_a), len(b.rows)), dtype=bool)
    nearest = np.full((len(a.slices), len(b.rows)), np.inf)
    for rows in iterate_blocks(len(b.rows)):
        for columns in iterate_blocks(len(a.rows)):
            distances = squared_distances(b.rows[rows], a.rows[columns])
            if a.groups is not None and b.groups is not None:
                distances[b.groups[rows, None] == a.groups[None, columns]] = np.inf
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
    return Draw(k, balls, covered, reached, reached_without, a.folds, b.folds)


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
