"""Fréchet distance against closed forms and SciPy; its extrapolation to infinitely many samples on Gaussians."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg

from presto_core.metrics.frechet import (
    Gaussian,
    draw_subsets,
    frechet_distance,
    frechet_distance_infinity,
    measure_without_folds,
)
from tests.core.test_distances import Matrix, covariance, draw_tracks, draws, rotation


def sample_with_moments(mean: Matrix, cov: Matrix, *, count: int, seed: int) -> Matrix:
    """[count, D] with exactly the given sample mean and (unbiased) sample covariance."""
    z = draws(count, len(mean), seed=seed)
    z -= z.mean(0)
    white = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z, rowvar=False))).T
    return mean + white @ np.linalg.cholesky(cov).T


@pytest.fixture(scope="module")
def sets() -> tuple[Matrix, Matrix]:
    """Two sets of different sizes, shapes and locations."""
    return draws(60, 5, seed=1) @ covariance(5, seed=2) + 0.5, draws(80, 5, seed=3)


def test_frechet_of_axis_aligned_gaussians_is_the_closed_form() -> None:
    """|m1 - m2|^2 + sum (s1 - s2)^2 for diagonal covariances."""
    m1, m2 = np.array([1.0, -2.0, 0.5]), np.array([0.0, 1.0, 0.5])
    s1, s2 = np.array([0.5, 2.0, 1.0]), np.array([1.5, 0.1, 1.0])
    a = sample_with_moments(m1, np.diag(s1**2), count=40, seed=0)
    b = sample_with_moments(m2, np.diag(s2**2), count=31, seed=1)
    expected = ((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum()
    assert frechet_distance(generated=a, reference=b) == pytest.approx(expected, rel=1e-10)


def test_frechet_equals_scipys_matrix_square_root() -> None:
    """Covariances that do not commute, so that the square root of their product is not symmetric."""
    m1, m2, c1, c2 = draws(1, 6)[0], draws(1, 6, seed=1)[0], covariance(6, seed=2), covariance(6, seed=3)
    a, b = sample_with_moments(m1, c1, count=50, seed=4), sample_with_moments(m2, c2, count=70, seed=5)
    assert not np.allclose(c1 @ c2, c2 @ c1, atol=0.1)
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * scipy.linalg.sqrtm(c1 @ c2)).real
    assert frechet_distance(generated=a, reference=b) == pytest.approx(expected, rel=1e-8)


def test_frechet_of_one_number_a_sample() -> None:
    a, b = np.array([[0.0], [2.0]]), np.array([[5.0], [11.0]])  # means 1 and 8, variances 2 and 18
    expected = (8 - 1) ** 2 + (math.sqrt(18) - math.sqrt(2)) ** 2
    assert frechet_distance(generated=a, reference=b) == pytest.approx(expected, rel=1e-12)


def test_frechet_of_a_set_with_itself_is_zero(sets) -> None:
    assert frechet_distance(generated=sets[0], reference=sets[0][::-1]) == pytest.approx(0, abs=1e-10)


def test_frechet_knows_neither_rotation_nor_origin_and_scales_by_the_square(sets) -> None:
    a, b = sets
    distance = frechet_distance(generated=a, reference=b)
    assert distance > 0.1
    turn = rotation(5)
    assert frechet_distance(generated=a @ turn + 7, reference=b @ turn + 7) == pytest.approx(distance, rel=1e-9)
    assert frechet_distance(generated=3 * a, reference=3 * b) == pytest.approx(9 * distance, rel=1e-9)
    assert frechet_distance(generated=b, reference=a) == pytest.approx(distance, rel=1e-9)


def test_frechet_of_fewer_samples_than_dimensions() -> None:
    """Singular covariances (a small evaluation): a pure shift has its squared length as distance."""
    a = draws(10, 50)
    shift = draws(1, 50, seed=1)
    assert frechet_distance(generated=a + shift, reference=a) == pytest.approx((shift**2).sum(), rel=1e-6)


# --- infinitely many samples


def true_distance(m1: Matrix, c1: Matrix, m2: Matrix, c2: Matrix) -> float:
    return float(((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * scipy.linalg.sqrtm(c1 @ c2)).real)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_extrapolation_finds_the_distance_of_the_gaussians_that_the_plain_one_overestimates(shift: float) -> None:
    dim = 8
    c1, c2 = covariance(dim, seed=1), covariance(dim, seed=1) if not shift else covariance(dim, seed=2)
    m1, m2 = np.zeros(dim), np.full(dim, shift / math.sqrt(dim))
    root1, root2 = np.linalg.cholesky(c1), np.linalg.cholesky(c2)
    plain, extrapolated = [], []
    for seed in range(60):
        a, b = m1 + draws(150, dim, seed=seed) @ root1.T, m2 + draws(120, dim, seed=seed + 999) @ root2.T
        plain.append(frechet_distance(generated=a, reference=b))
        extrapolated.append(frechet_distance_infinity(generated=a, reference=b))
    expected = true_distance(m1, c1, m2, c2)
    error = float(np.std(extrapolated) / math.sqrt(len(extrapolated)))
    bias = float(np.mean(plain)) - expected
    assert bias > 3 * error
    # what is left is the bias of second order, 1/n^2
    assert np.mean(extrapolated) == pytest.approx(expected, abs=3 * error + 0.1 * bias)


def test_subsets_of_whole_tracks_remove_the_bias_that_dependent_patches_add() -> None:
    rows, tracks, single = [], [], []
    for seed in range(60):
        (a, tracks_a), (b, tracks_b) = (draw_tracks(60, 4, 4, seed=s) for s in (seed, seed + 999))
        rows.append(frechet_distance_infinity(generated=a, reference=b))
        tracks.append(
            frechet_distance_infinity(generated=a, reference=b, generated_groups=tracks_a, reference_groups=tracks_b)
        )
        single.append(frechet_distance(generated=a, reference=b))
    assert abs(np.mean(tracks)) < 3 * np.std(tracks) / math.sqrt(60) + 0.1 * np.mean(single)
    assert np.mean(rows) > 0.5 * np.mean(single)  # four patches of a track weigh as one


def test_without_the_reference_it_is_a_line_through_subsets_of_the_generated_set() -> None:
    """As fadtk (Gui et al. 2024): FD over 1/n, the reference whole, the intercept of numpy's least squares."""
    a, b = draws(200, 5) @ covariance(5, seed=2) + 0.5, draws(180, 5, seed=3)
    inverse, values = [], []
    for subset in draw_subsets(200, 180, None, None, dim=5, both=False):
        chosen = a[subset.generated]
        assert subset.reference.all()
        inverse.append(1 / len(chosen))
        values.append(frechet_distance(generated=chosen, reference=b))
    expected = np.polynomial.Polynomial.fit(inverse, values, 1).convert().coef[0]
    ours = frechet_distance_infinity(generated=a, reference=b, extrapolate_reference=False)
    assert min(map(len, (inverse, values))) >= 10
    assert ours == pytest.approx(expected, rel=0.02)  # sizes are whole numbers of rows, ours 1/n as meant


def test_extrapolation_is_seeded_and_refuses_what_it_cannot_halve() -> None:
    a, b = draws(40, 5) + 0.5, draws(50, 5, seed=3)
    first, again, other = (frechet_distance_infinity(generated=a, reference=b, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert math.isfinite(frechet_distance_infinity(generated=a[:4], reference=b[:4]))
    with pytest.raises(ValueError, match="FD at infinity needs 4 rows or more of each set, not 3"):
        frechet_distance_infinity(generated=a[:3], reference=b)


def test_rows_without_a_fold_are_measured_from_moments_as_directly() -> None:
    rows, reference = draws(40, 6) @ covariance(6, seed=2) + 3, draws(50, 6, seed=3)
    folds = np.random.default_rng(0).integers(0, 4, 40)
    found = measure_without_folds(rows, folds, 5, Gaussian.fit(reference))
    direct = [frechet_distance(generated=rows[folds != fold], reference=reference) for fold in range(5)]
    assert found == pytest.approx(direct, rel=1e-10)
    assert direct[4] == frechet_distance(generated=rows, reference=reference)  # no row is of fold 4
