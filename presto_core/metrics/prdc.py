"""Precision, recall, density and coverage by nearest neighbours (Kynkäänniemi et al. 2019, Naeem et al. 2020)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from presto_core.metrics.distances import Embeddings, squared_distances


def prdc(*, generated: Embeddings, reference: Embeddings, k: int) -> dict[str, float]:
    """Fidelity (precision, density) and diversity (recall, coverage) of a generated set.

    Args:
        generated, reference: [N, D] and [M, D].
        k: neighbours that span each point's ball.

    Raises:
        ValueError: a set has no more than k points.
    """
    if min(len(generated), len(reference)) <= k:
        counts = f"{len(generated)} generated and {len(reference)} reference"
        raise ValueError(f"k={k} neighbours need more than {k} samples in each set, not {counts} ones")
    a, b = np.asarray(generated, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    radius_a, radius_b = _ball_radius(a, k), _ball_radius(b, k)
    across = squared_distances(b, a)  # [M, N]
    inside_b, inside_a = across < radius_b[:, None], across < radius_a[None, :]
    return {
        "precision": float(inside_b.any(axis=0).mean()),
        "recall": float(inside_a.any(axis=1).mean()),
        "density": float(inside_b.sum(axis=0).mean() / k),
        "coverage": float((across.min(axis=1) < radius_b).mean()),
    }


def _ball_radius(points: npt.NDArray[np.float64], k: int) -> npt.NDArray[np.float64]:
    """Squared distance of each point to its k-th neighbour (itself not counted)."""
    distances = squared_distances(points, points)
    np.fill_diagonal(distances, 0.0)
    return np.partition(distances, k, axis=1)[:, k]
