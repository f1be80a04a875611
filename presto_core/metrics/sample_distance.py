"""How close clips are to the teacher's from the same noise and prompts: closeness per clip, not of distributions."""

from __future__ import annotations

import numpy as np

from presto_core.metrics.distances import Embeddings, Labels, validate_pair


def sample_distance(*, generated: Embeddings, teacher: Embeddings, groups: Labels | None = None) -> float:
    """Mean squared distance of paired rows over that of rows of different tracks: 0 for equal clips, 1 for unrelated.

    The denominator is the mean over all pairs of different tracks, which is what every derangement across tracks has as
    its expectation.

    Args:
        generated, teacher: [N, D], row i of both from the same noise and prompt.
        groups: number of each row's track, [N]; None takes each row as a track.

    Raises:
        ValueError: sets do not pair, or are of one track.
    """
    a, b = validate_pair(generated, teacher)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} generated embeddings do not pair with {len(b)} of the teacher's")
    _, tracks = np.unique(np.arange(len(a)) if groups is None else groups, return_inverse=True)
    if tracks.max() == 0:
        raise ValueError(f"all {len(a)} generated embeddings are of one track; sample_distance needs two or more")
    center = b.mean(0)
    a, b = a - center, b - center
    paired = ((a - b) ** 2).sum(1).mean()
    unpaired, pairs = _sum_across_tracks(a, b, tracks)
    return float(paired / max(unpaired / pairs, 1e-12))


def _sum_across_tracks(a: Embeddings, b: Embeddings, tracks: Labels) -> tuple[float, float]:
    """Sum of |a_i - b_j|^2 over all i, j of different tracks, and the number of these pairs; memory O(N D)."""
    count = np.bincount(tracks)
    sums = np.zeros((2, len(count), a.shape[1]))
    np.add.at(sums[0], tracks, a)
    np.add.at(sums[1], tracks, b)
    # sum_ij |a_i - b_j|^2 = sum_i m_i |a_i|^2 + sum_j n_j |b_j|^2 - 2 a.b summed, over all rows less those of one track
    others = (len(a) - count)[tracks]
    squares = (others * ((a**2).sum(1) + (b**2).sum(1))).sum()
    products = a.sum(0) @ b.sum(0) - (sums[0] * sums[1]).sum()
    return float(squares - 2 * products), float(others.sum())
