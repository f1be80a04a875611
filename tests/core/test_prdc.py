"""Precision, recall, density and coverage against the `prdc` package and known points, whole and without folds."""

from __future__ import annotations

import numpy as np
import pytest
from prdc import compute_prdc

from presto_core.metrics import distances
from presto_core.metrics.prdc import find_neighbors, prdc
from tests.core.test_distances import Matrix, draw_tracks, draws


def publish(generated: Matrix, reference: Matrix, k: int) -> dict[str, float]:
    """The published package's values."""
    values = compute_prdc(real_features=reference, fake_features=generated, nearest_k=k)
    return {name: float(value) for name, value in values.items()}


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.5, 0.4), (1.5, 1.0), (1.0, 30.0)])
def test_prdc_equals_the_published_package(k: int, scale: float, shift: float) -> None:
    reference, generated = draws(90, 4), scale * draws(70, 4, seed=1) + shift
    ours = prdc(generated=generated, reference=reference, k=k)
    assert ours == pytest.approx(publish(generated, reference, k), abs=1e-12)


def test_prdc_of_known_points() -> None:
    """On a line, k = 1: real 0, 1, 10 have radii 1, 1, 9; generated 0.4, 0.6, 100 have radii 0.2, 0.2, 99.4."""
    values = prdc(generated=np.array([[0.4], [0.6], [100.0]]), reference=np.array([[0.0], [1.0], [10.0]]), k=1)
    assert values["precision"] == pytest.approx(2 / 3)
    assert values["recall"] == pytest.approx(2 / 3)  # 1 and 10 lie within 99.4 of 100
    assert values["density"] == pytest.approx((2 + 2 + 0) / 3)  # 0.4 and 0.6 lie within 0 and 1, 100 within none
    assert values["coverage"] == pytest.approx(2 / 3)


def test_prdc_refuses_sets_smaller_than_a_neighbourhood() -> None:
    with pytest.raises(ValueError, match=r"k=5 .* of more than 5 tracks in each set, not 9 generated and 5 "):
        prdc(generated=draws(9, 2), reference=draws(5, 2), k=5)


@pytest.mark.parametrize("block", [1, 6, 50])
def test_blocks_change_no_value(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(distances, "BLOCK", block)
    generated, reference = 0.8 * draws(40, 4, seed=1) + 0.2, draws(50, 4)
    assert prdc(generated=generated, reference=reference, k=3) == pytest.approx(publish(generated, reference, 3))


def test_leaving_a_fold_out_equals_computing_without_its_rows() -> None:
    generated, reference = 0.8 * draws(60, 3, seed=1) + 0.3, draws(50, 3)
    folds_a, folds_b = np.random.default_rng(0).integers(0, 5, 60), np.random.default_rng(1).integers(0, 4, 50)
    found = find_neighbors(
        generated=generated, reference=reference, k=3, generated_folds=folds_a, reference_folds=folds_b
    )
    assert found.measure() == pytest.approx(publish(generated, reference, 3))
    for fold in range(5):
        expected = publish(generated[folds_a != fold], reference, 3)
        assert found.measure(without_generated=fold) == pytest.approx(expected)
    for fold in range(4):
        expected = publish(generated, reference[folds_b != fold], 3)
        assert found.measure(without_reference=fold) == pytest.approx(expected)


# --- tracks


def measure_tracks(patches: tuple[int, int], seed: int) -> dict[str, float]:
    """One distribution, 60 tracks a set, with so many patches of each generated and each real track."""
    (a, of_a), (b, of_b) = (draw_tracks(60, count, 20, seed=2 * seed + i) for i, count in enumerate(patches))
    return prdc(generated=a, reference=b, k=5, generated_groups=of_a, reference_groups=of_b + 1000)


@pytest.fixture(scope="module")
def of_independent_rows() -> dict[str, float]:
    values = [measure_tracks((1, 1), seed) for seed in range(40)]
    return {name: float(np.mean([value[name] for value in values])) for name in values[0]}


@pytest.mark.parametrize("patches", [(2, 2), (4, 4), (8, 8), (1, 8), (6, 2)])
def test_patches_of_one_track_change_no_expectation(patches: tuple[int, int], of_independent_rows) -> None:
    values = [measure_tracks(patches, seed) for seed in range(12)]
    for name, expected in of_independent_rows.items():
        found = [value[name] for value in values]
        error = float(np.std(found, ddof=1) / len(found) ** 0.5)
        assert abs(np.mean(found) - expected) < 4 * error + 0.01, (name, np.mean(found), expected)


def test_patches_without_their_tracks_make_coverage_collapse(of_independent_rows) -> None:
    (a, _), (b, _) = (draw_tracks(60, 8, 20, seed=seed) for seed in (0, 1))
    plain = prdc(generated=a, reference=b, k=5)
    assert plain["coverage"] < 0.1
    assert of_independent_rows["coverage"] > 0.9


def test_rows_that_are_tracks_of_their_own_are_the_published_package() -> None:
    generated, reference = 0.8 * draws(40, 4, seed=1) + 0.2, draws(50, 4)
    orders = np.random.default_rng(0).permutation(40), 100 + np.random.default_rng(1).permutation(50)
    found = prdc(generated=generated, reference=reference, k=3, generated_groups=orders[0], reference_groups=orders[1])
    assert found == pytest.approx(publish(generated, reference, 3))


@pytest.mark.parametrize("block", [1, 7, 50])
def test_a_clip_is_not_compared_with_the_ball_of_its_own_track(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(distances, "BLOCK", block)
    rows, tracks = draws(30, 3), np.random.default_rng(0).permutation(30)
    copied = prdc(generated=rows, reference=rows, k=1, generated_groups=tracks, reference_groups=tracks)
    # the only copy of a row is of its own track, and by definition 1 other row is as near as the radius, not nearer
    assert copied["coverage"] == 0
    apart = prdc(generated=rows, reference=rows, k=1, generated_groups=tracks, reference_groups=tracks + 30)
    assert apart["coverage"] == 1


def test_leaving_a_fold_of_tracks_out_equals_computing_without_its_rows() -> None:
    (a, of_a), (b, of_b) = draw_tracks(20, 3, 3, seed=1), draw_tracks(18, 3, 3, seed=2)
    folds_a, folds_b = of_a % 4, of_b % 3
    found = find_neighbors(
        generated=a, reference=b, k=3, generated_groups=of_a, reference_groups=of_b,
        generated_folds=folds_a, reference_folds=folds_b,
    )  # fmt: skip
    one_draw = find_neighbors(generated=a, reference=b, k=3, generated_groups=of_a, reference_groups=of_b)
    assert found.measure() == pytest.approx(one_draw.measure())
    for draw in found.draws:
        assert np.bincount(draw.generated_folds).tolist() == [5] * 4
        assert np.bincount(draw.reference_folds).tolist() == [6] * 3


def test_every_patch_takes_part_in_one_draw() -> None:
    """Real rows on a line, 10 apart; the generated patch that leaves its track's place is missed by 1 of 4 draws."""
    tracks = np.repeat(np.arange(8), 4)
    real = 10.0 * tracks[:, None] + np.tile([0.0, 0.1, 0.2, 0.3], 8)[:, None]
    generated = real.copy()
    generated[5] = 1e6
    found = prdc(generated=generated, reference=real, k=1, generated_groups=tracks, reference_groups=tracks + 8)
    assert found["precision"] == pytest.approx(31 / 32)


def test_few_tracks_are_refused_however_many_their_patches() -> None:
    (a, of_a), (b, of_b) = draw_tracks(9, 4, 2, seed=1), draw_tracks(5, 9, 2, seed=2)
    with pytest.raises(ValueError, match="more than 5 tracks in each set, not 9 generated and 5 reference"):
        prdc(generated=a, reference=b, k=5, generated_groups=of_a, reference_groups=of_b)


def test_embeddings_that_are_not_finite_are_refused() -> None:
    broken = draws(9, 2)
    broken[3, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 9 generated embeddings are not finite"):
        prdc(generated=broken, reference=draws(9, 2), k=2)
