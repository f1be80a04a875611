"""Distances between sets against closed forms, SciPy, slow loops and the `prdc` package; health and latency signals."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import scipy.linalg
import torch
from prdc import compute_prdc

from presto_core.metrics.distances import frechet_distance, mmd, squared_distances
from presto_core.metrics.latency import describe_hardware, measure_latency
from presto_core.metrics.prdc import prdc
from presto_core.training.health import STEP_DISTILLATION, TEACHER, HealthRange, find_out_of_range

Matrix = np.ndarray


def draws(count: int, dim: int, *, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).standard_normal((count, dim))


def covariance(dim: int, *, seed: int) -> Matrix:
    factor = draws(dim, dim, seed=seed)
    return factor @ factor.T / dim + 0.1 * np.eye(dim)


def sample_with_moments(mean: Matrix, cov: Matrix, *, count: int, seed: int) -> Matrix:
    """[count, D] with exactly the given sample mean and (unbiased) sample covariance."""
    z = draws(count, len(mean), seed=seed)
    z -= z.mean(0)
    white = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z, rowvar=False))).T
    return mean + white @ np.linalg.cholesky(cov).T


def rotation(dim: int) -> Matrix:
    return np.linalg.qr(draws(dim, dim, seed=99))[0]


@pytest.fixture(scope="module")
def sets() -> tuple[Matrix, Matrix]:
    """Two sets of different sizes, shapes and locations."""
    return draws(60, 5, seed=1) @ covariance(5, seed=2) + 0.5, draws(80, 5, seed=3)


# --- Fréchet distance


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


# --- maximum mean discrepancy


def slow_mmd(a: Matrix, b: Matrix, kernel) -> float:
    """Reference: Gretton et al. 2012, eq. 3, pair by pair."""
    n, m = len(a), len(b)
    within_a = sum(kernel(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_b = sum(kernel(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    across = sum(kernel(x, y) for x in a for y in b) / (n * m)
    return within_a + within_b - 2 * across


def test_mmd_equals_the_sum_over_pairs() -> None:
    a, b = 1.2 * draws(7, 3) + 0.3, draws(5, 3, seed=1)
    median = np.median([((b[i] - b[j]) ** 2).sum() for i in range(5) for j in range(5) if i != j])
    rbf = slow_mmd(a, b, lambda x, y: math.exp(-((x - y) ** 2).sum() / median))
    cubic = slow_mmd(a, b, lambda x, y: (x @ y / 3 + 1) ** 3)
    assert mmd(generated=a, reference=b) == pytest.approx(rbf, rel=1e-12)
    assert mmd(generated=a, reference=b, kernel="polynomial") == pytest.approx(cubic, rel=1e-12)
    with pytest.raises(ValueError, match="kernel='linear' is unknown; choose from rbf, polynomial"):
        mmd(generated=a, reference=b, kernel="linear")


@pytest.mark.parametrize("kernel", ["rbf", "polynomial"])
def test_mmd_is_unbiased(kernel: str) -> None:
    """Its mean over pairs of sets from one distribution is 0 within three standard errors; with a shift, far above."""

    def values(count: int, shift: float) -> list[float]:
        pairs = ((draws(12, 4, seed=s) + shift, draws(12, 4, seed=s + 500)) for s in range(count))
        return [mmd(generated=a, reference=b, kernel=kernel) for a, b in pairs]

    same = values(300, shift=0)
    error = np.std(same) / math.sqrt(len(same))
    assert abs(np.mean(same)) < 3 * error
    assert min(same) < 0
    assert np.mean(values(20, shift=1)) > 20 * error


def test_mmd_with_rbf_depends_on_distances_alone(sets) -> None:
    a, b = sets
    turn, value = rotation(5), mmd(generated=a, reference=b)
    assert mmd(generated=2 * a @ turn + 3, reference=2 * b @ turn + 3) == pytest.approx(value, rel=1e-9)


def test_mmd_of_a_reference_that_is_one_point_is_finite() -> None:
    assert mmd(generated=draws(4, 3), reference=np.ones((4, 3))) == pytest.approx(1, abs=1e-9)


def test_squared_distances_equal_a_loop(sets) -> None:
    a, b = sets[0][:6], sets[1][:4]
    slow = [[((x - y) ** 2).sum() for y in b] for x in a]
    np.testing.assert_allclose(squared_distances(a, b), slow, rtol=1e-12)
    assert (squared_distances(1e6 + a, 1e6 + a) >= 0).all()


@pytest.mark.parametrize("distance", [frechet_distance, mmd])
def test_sets_that_cannot_be_compared_are_refused(distance) -> None:
    with pytest.raises(ValueError, match=r"at least two embeddings of one width, not \(4, 3\) and \(4, 2\)"):
        distance(generated=np.zeros((4, 3)), reference=np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"not \(1, 3\) and \(4, 3\)"):
        distance(generated=np.zeros((1, 3)), reference=np.zeros((4, 3)))
    broken = np.zeros((4, 3))
    broken[1, 2], broken[3, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match="2 of 4 generated embeddings are not finite"):
        distance(generated=broken, reference=np.zeros((4, 3)))


# --- precision, recall, density, coverage


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.5, 0.4), (1.5, 1.0), (1.0, 30.0)])
def test_prdc_equals_the_published_package(k: int, scale: float, shift: float) -> None:
    reference, generated = draws(90, 4), scale * draws(70, 4, seed=1) + shift
    ours = prdc(generated=generated, reference=reference, k=k)
    theirs = compute_prdc(real_features=reference, fake_features=generated, nearest_k=k)
    assert ours == pytest.approx({name: float(value) for name, value in theirs.items()}, abs=1e-12)


def test_prdc_of_known_points() -> None:
    """On a line, k = 1: real 0, 1, 10 have radii 1, 1, 9; generated 0.4, 0.6, 100 have radii 0.2, 0.2, 99.4."""
    values = prdc(generated=np.array([[0.4], [0.6], [100.0]]), reference=np.array([[0.0], [1.0], [10.0]]), k=1)
    assert values["precision"] == pytest.approx(2 / 3)
    assert values["recall"] == pytest.approx(2 / 3)  # 1 and 10 lie within 99.4 of 100
    assert values["density"] == pytest.approx((2 + 2 + 0) / 3)  # 0.4 and 0.6 lie within 0 and 1, 100 within none
    assert values["coverage"] == pytest.approx(2 / 3)


def test_prdc_refuses_sets_smaller_than_a_neighbourhood() -> None:
    with pytest.raises(ValueError, match="k=5 neighbours need more than 5 samples in each set, not 9 generated and 5 "):
        prdc(generated=draws(9, 2), reference=draws(5, 2), k=5)


# --- health


def test_out_of_range_names_what_is_outside_its_range() -> None:
    expected = {"loss": HealthRange(0.0, 2.0, "too high"), "other": HealthRange(-1.0, 1.0, "off")}
    assert find_out_of_range({"loss": 2.5, "other": 0.0}, expected) == {
        "loss": "loss = 2.5 is outside 0 ... 2: too high"
    }
    assert find_out_of_range({"loss": 0.0, "other": 1.0, "unknown": 1e9}, expected) == {}
    assert find_out_of_range({}, expected) == {}
    assert set(find_out_of_range({"loss": math.nan, "other": -math.inf}, expected)) == {"loss", "other"}


@pytest.mark.parametrize("rules", [STEP_DISTILLATION, TEACHER])
def test_perfect_training_is_healthy_and_its_opposite_is_not(rules: dict[str, HealthRange]) -> None:
    """A least-squares discriminator at its equilibrium scores 1/2; a perfect generator's latents are N(0, 1)."""
    ideal = {"d_real": 0.5, "d_fake": 0.5, "discriminator_loss": 0.5, "dsm_loss": 0.5, "x0_mean": 0.0, "x0_std": 1.0}
    ideal |= {"generator_grad_norm": 1.0, "grad_norm": 1.0}
    assert find_out_of_range(ideal, rules) == {}
    assert find_out_of_range(dict.fromkeys(rules, 1e4), rules).keys() == rules.keys()


# --- latency


def test_every_call_is_made_and_counted() -> None:
    made = []
    measured = measure_latency(lambda: made.append(1), calls=7, warmup=3)
    assert len(made) == 10
    assert measured.calls == 7
    assert measured.to_dict().keys() == {"p50_ms", "p95_ms", "calls"}
    assert 0 <= measured.p50_ms <= measured.p95_ms


def test_latency_is_milliseconds_of_one_call_without_the_warm_up() -> None:
    """`sleep` never ends early, so these are lower bounds: 20 ms per call after the warm-up, once 60 ms."""
    naps = iter([0, 0, 0, 0.02, 0.02, 0.06, 0.02, 0.02])
    measured = measure_latency(lambda: time.sleep(next(naps)), calls=5, warmup=3)
    assert measured.p50_ms >= 20
    assert measured.p95_ms >= 0.8 * 60 + 0.2 * 20  # the 95th percentile of five is 4/5 of the way to the largest


def test_hardware_names_what_was_measured_on() -> None:
    found = describe_hardware()
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["device"]
