"""Distances between two sets of embeddings: Fréchet distance and maximum mean discrepancy (METHOD section 6)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Embeddings = npt.NDArray[np.floating]


def frechet_distance(*, generated: Embeddings, reference: Embeddings) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) between the Gaussians fitted to two sets (Heusel et al. 2017).

    Biased upward for small sets: compare only equal sizes, next to a real-against-real floor.

    Args:
        generated, reference: [N, D] and [M, D], each with at least two rows.

    Raises:
        ValueError: shapes do not fit, or a value is not finite.
    """
    a, b = _validate_pair(generated, reference)
    shift = a.mean(0) - b.mean(0)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # tr (S1 S2)^(1/2) = sum of square roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric
    root = _symmetric_sqrt(np.atleast_2d(cov_a))
    cross = np.linalg.eigvalsh(root @ np.atleast_2d(cov_b) @ root)
    trace_root = np.sqrt(cross.clip(min=0)).sum()
    # never below zero but by rounding, as for two sets that are the same
    return max(0.0, float(shift @ shift + np.trace(np.atleast_2d(cov_a + cov_b)) - 2 * trace_root))


def mmd(*, generated: Embeddings, reference: Embeddings, kernel: str = "rbf") -> float:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012, equation 3); may be slightly negative.

    Args:
        kernel: `rbf` with the median distance of the reference as bandwidth, or `polynomial` (x.y/D + 1)^3 (KID).

    Raises:
        ValueError: unknown kernel, or embeddings that do not compare.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel!r} is unknown; choose from {', '.join(KERNELS)}")
    a, b = _validate_pair(generated, reference)
    k = KERNELS[kernel](b)
    within_a, within_b, across = k(a, a), k(b, b), k(a, b)
    n, m = len(a), len(b)
    mean_a = (within_a.sum() - np.trace(within_a)) / (n * (n - 1))
    mean_b = (within_b.sum() - np.trace(within_b)) / (m * (m - 1))
    return float(mean_a + mean_b - 2 * across.mean())


Kernel = Callable[[Embeddings, Embeddings], Embeddings]


def squared_distances(a: Embeddings, b: Embeddings) -> npt.NDArray[np.float64]:
    """[N, D], [M, D] -> [N, M], never negative."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.asarray(squares.clip(min=0), dtype=np.float64)


def _rbf_kernel(reference: Embeddings) -> Kernel:
    off_diagonal = ~np.eye(len(reference), dtype=bool)
    bandwidth = np.median(squared_distances(reference, reference)[off_diagonal])
    return lambda a, b: np.exp(-squared_distances(a, b) / max(bandwidth, 1e-12))


def _polynomial_kernel(reference: Embeddings) -> Kernel:
    return lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3


KERNELS: dict[str, Callable[[Embeddings], Kernel]] = {"rbf": _rbf_kernel, "polynomial": _polynomial_kernel}


def _symmetric_sqrt(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(values.clip(min=0))) @ vectors.T)


def _validate_pair(
    generated: Embeddings, reference: Embeddings
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    a, b = np.asarray(generated, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"need two sets of at least two embeddings of one width, not {a.shape} and {b.shape}")
    for name, values in (("generated", a), ("reference", b)):
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values).all(axis=1)).sum())
            raise ValueError(f"{bad} of {len(values)} {name} embeddings are not finite")
    return a, b
