"""Maximum mean discrepancy and sample distance against slow loops and known answers; health and latency signals."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch

from presto_core.metrics import distances
from presto_core.metrics.distances import median_squared_distance, mmd, squared_distances
from presto_core.metrics.frechet import frechet_distance
from presto_core.metrics.latency import describe_hardware, measure_latency
from presto_core.metrics.sample_distance import sample_distance
from presto_core.training.health import STEP_DISTILLATION, TEACHER, HealthRange, find_out_of_range

Matrix = np.ndarray


def draws(count: int, dim: int, *, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).standard_normal((count, dim))


def covariance(dim: int, *, seed: int) -> Matrix:
    factor = draws(dim, dim, seed=seed)
    return factor @ factor.T / dim + 0.1 * np.eye(dim)


def rotation(dim: int) -> Matrix:
    return np.linalg.qr(draws(dim, dim, seed=99))[0]


@pytest.fixture(scope="module")
def sets() -> tuple[Matrix, Matrix]:
    """Two sets of different sizes, shapes and locations."""
    return draws(60, 5, seed=1) @ covariance(5, seed=2) + 0.5, draws(80, 5, seed=3)


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


# --- over tracks


def draw_tracks(tracks: int, patches: int, dim: int, *, seed: int) -> tuple[Matrix, Matrix]:
    """Patches that share most of their variance within a track: embeddings and the number of their track."""
    centers, noise = draws(tracks, dim, seed=seed), draws(tracks * patches, dim, seed=seed + 10**6)
    return np.repeat(centers, patches, axis=0) + 0.3 * noise, np.repeat(np.arange(tracks), patches)


def test_mmd_over_tracks_equals_the_sum_over_pairs_of_different_tracks() -> None:
    a, b = 1.2 * draws(9, 3) + 0.3, draws(8, 3, seed=1)
    tracks_a, tracks_b = np.array([5, 5, 2, 2, 2, 7, 7, 1, 1]), np.array([2, 2, 9, 9, 9, 9, 5, 4])

    def mean(x: Matrix, y: Matrix, of_x: Matrix, of_y: Matrix) -> float:
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if of_x[i] != of_y[j]]
        return float(np.mean([(x[i] @ y[j] / 3 + 1) ** 3 for i, j in pairs]))

    expected = mean(a, a, tracks_a, tracks_a) + mean(b, b, tracks_b, tracks_b) - 2 * mean(a, b, tracks_a, tracks_b)
    value = mmd(generated=a, reference=b, kernel="polynomial", generated_groups=tracks_a, reference_groups=tracks_b)
    assert value == pytest.approx(expected, rel=1e-12)


def test_patches_of_a_track_bias_mmd_upward_unless_their_pairs_are_left_out() -> None:
    plain, grouped = [], []
    for seed in range(150):
        (a, tracks_a), (b, tracks_b) = (draw_tracks(12, 4, 3, seed=s) for s in (seed, seed + 5000))
        plain.append(mmd(generated=a, reference=b))
        grouped.append(mmd(generated=a, reference=b, generated_groups=tracks_a, reference_groups=tracks_b + 100))
    error = np.std(grouped) / math.sqrt(len(grouped))
    assert abs(np.mean(grouped)) < 3 * error
    assert np.mean(plain) > 10 * error


def test_generated_clips_are_not_compared_with_the_track_of_their_own_prompt() -> None:
    """A copy of the reference, track by track, is neither nearer nor farther than chance: MMD is 0 on average."""
    values = []
    for seed in range(150):
        a, tracks = draw_tracks(12, 4, 3, seed=seed)
        values.append(mmd(generated=a, reference=a, generated_groups=tracks, reference_groups=tracks))
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(len(values)) + 1e-12


def test_one_track_is_refused() -> None:
    with pytest.raises(ValueError, match="all 4 reference embeddings are of one track; MMD needs two or more"):
        mmd(generated=draws(4, 2), reference=draws(4, 2), reference_groups=np.full(4, 3))
    with pytest.raises(ValueError, match=r"4 generated embeddings need as many groups, not \[3\]"):
        mmd(generated=draws(4, 2), reference=draws(4, 2), generated_groups=np.arange(3))


# --- in blocks


def whole_mmd(a: Matrix, b: Matrix) -> float:
    """The plain form, which holds all kernel values at once."""

    def measure(x: Matrix, y: Matrix) -> Matrix:
        return ((x[:, None] - y[None]) ** 2).sum(2)

    bandwidth = np.median(measure(b, b)[~np.eye(len(b), dtype=bool)])
    within_a, within_b, across = (np.exp(-measure(x, y) / bandwidth) for x, y in ((a, a), (b, b), (a, b)))
    n, m = len(a), len(b)
    within = (within_a.sum() - n) / (n * (n - 1)) + (within_b.sum() - m) / (m * (m - 1))
    return float(within - 2 * across.mean())


@pytest.mark.parametrize("block", [1, 7, 64])
def test_blocks_change_no_value(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(distances, "BLOCK", block)
    a, b = 1.1 * draws(40, 6) + 0.2, draws(33, 6, seed=1)
    assert mmd(generated=a, reference=b) == pytest.approx(whole_mmd(a, b), rel=1e-9)


def test_a_large_common_offset_costs_no_digits() -> None:
    a, b = 1.1 * draws(40, 6) + 0.2, draws(33, 6, seed=1)
    assert mmd(generated=a + 1e4, reference=b + 1e4) == pytest.approx(whole_mmd(a, b), rel=1e-6)


def test_bandwidth_is_the_median_of_all_pairs_and_of_a_seeded_choice_if_there_are_many(monkeypatch) -> None:
    rows = draws(300, 4)
    pairs = [((x - y) ** 2).sum() for i, x in enumerate(rows) for y in rows[:i]]
    exact = median_squared_distance(rows)
    assert exact == pytest.approx(np.median(pairs), rel=1e-12)
    monkeypatch.setattr(distances, "EXACT_MEDIAN_ROWS", 150)
    assert median_squared_distance(rows) == median_squared_distance(rows) == pytest.approx(exact, rel=0.1)
    assert median_squared_distance(rows) != exact


# --- distance of single clips to the teacher's


def test_sample_distance_is_0_for_the_same_clips_and_1_for_unrelated_ones() -> None:
    teacher, tracks = draw_tracks(300, 2, 5, seed=0)
    assert sample_distance(generated=teacher, teacher=teacher, groups=tracks) == 0
    unrelated = [
        sample_distance(generated=draw_tracks(50, 2, 5, seed=s)[0] + 2, teacher=teacher[:100], groups=tracks[:100])
        for s in range(1, 60)
    ]
    error = float(np.std(unrelated)) / math.sqrt(len(unrelated))
    assert np.mean(unrelated) == pytest.approx(1, abs=3 * error)


def test_sample_distance_divides_by_the_mean_over_pairs_of_different_tracks() -> None:
    a, b, tracks = draws(7, 3), draws(7, 3, seed=1), np.array([4, 4, 1, 1, 1, 0, 9])
    paired = np.mean([((x - y) ** 2).sum() for x, y in zip(a, b)])
    others = [((a[i] - b[j]) ** 2).sum() for i in range(7) for j in range(7) if tracks[i] != tracks[j]]
    assert sample_distance(generated=a, teacher=b, groups=tracks) == pytest.approx(paired / np.mean(others), rel=1e-12)


def test_clips_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="4 generated embeddings do not pair with 5 of the teacher's"):
        sample_distance(generated=draws(4, 2), teacher=draws(5, 2))
    with pytest.raises(ValueError, match="of one track"):
        sample_distance(generated=draws(4, 2), teacher=draws(4, 2), groups=np.zeros(4, dtype=int))


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
