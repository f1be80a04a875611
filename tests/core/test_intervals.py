"""Intervals: simulated coverage, replicates against plain recomputation, and closed forms of the jackknife."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from presto_core.metrics.distances import Labels, median_squared_distance, squared_distances
from presto_core.metrics.embedding_sets import EmbeddingSets
from presto_core.metrics.intervals import (
    assign_groups,
    estimate_intervals,
    explain_missing_intervals,
    jackknife_half_width,
)
from presto_core.metrics.replicates import FAMILIES, Folds, deal_tracks, replicate_metrics
from presto_core.metrics.table import METRICS, measure_quality
from tests.core.test_distances import Matrix, draw_tracks, draws

NAMES = ("mmd", "fd", "fd_inf", "precision", "recall", "density", "coverage")
SIMULATED = 100


def draw_sets(seed: int, *, shift: float, tracks: int = 60, dim: int = 4) -> EmbeddingSets:
    """Two patches a track; real music has another mean."""
    (a, tracks_a), (b, tracks_b) = (draw_tracks(tracks, 2, dim, seed=2 * seed + side) for side in (0, 1))
    return EmbeddingSets(a + shift, b, nearest_k=5, generated_groups=tracks_a, reference_groups=tracks_b + 10**6)


def compute(name: str, sets: EmbeddingSets) -> float:
    """The metric by its own function."""
    function = METRICS[name].compute
    assert function
    return function(sets)


def compare_tracks(groups: Labels | None) -> Matrix:
    """[N, N] whether two rows are of different tracks."""
    assert groups is not None
    return np.asarray(groups[:, None] != groups[None])


# over 10 s on a busy machine: coverage is a share of many independent evaluations
def test_intervals_cover_the_expectation_of_every_metric_as_often_as_they_promise() -> None:
    shift = 0.7
    values = [measure_quality(draw_sets(seed, shift=shift)) for seed in range(1000, 1200)]
    expected = {name: np.mean([v[name] for v in values]) for name in NAMES}
    hits: dict[str, int] = dict.fromkeys(NAMES, 0)
    for seed in range(SIMULATED):
        found = estimate_intervals(draw_sets(seed, shift=shift), NAMES, groups=20, confidence=0.95)
        for name, (low, high) in found.items():
            hits[name] += bool(low <= expected[name] <= high)
    rates = {name: count / SIMULATED for name, count in hits.items()}
    assert all(0.9 <= rate <= 1 for rate in rates.values()), rates
    # and are not merely wide
    assert all(rates[name] <= 0.99 for name in ("mmd", "fd", "fd_inf")), rates


@pytest.mark.parametrize("side", ["generated", "reference"])
def test_replicates_equal_the_metric_without_the_rows_of_a_fold(side: str) -> None:
    sets = draw_sets(0, shift=0.3, tracks=30)
    folds = Folds.of(sets, 6)
    found = replicate_metrics(sets, folds, ("fd", "precision", "recall", "density", "coverage"))
    for fold in range(6):
        without = sets.select(**{side: getattr(folds, side) != fold})
        expected = {name: compute(name, without) for name in found}
        assert {name: getattr(one, side)[fold] for name, one in found.items()} == pytest.approx(expected)
    assert {name: one.value for name, one in found.items()} == pytest.approx(
        {name: measure_quality(sets)[name] for name in found}
    )


def test_replicates_of_mmd_keep_the_bandwidth_of_the_whole_reference() -> None:
    sets = draw_sets(0, shift=0.3, tracks=12)
    folds = Folds.of(sets, 4)
    found = replicate_metrics(sets, folds, ["mmd"])["mmd"]
    assert found.value == pytest.approx(measure_quality(sets)["mmd"])
    bandwidth = median_squared_distance(np.asarray(sets.reference, dtype=np.float64))
    kept = sets.select(reference=folds.reference != 2)

    def mean(x: Matrix, y: Matrix, pairs: Matrix) -> float:
        return float(np.exp(-squared_distances(x, y) / bandwidth)[pairs].mean())

    a, b = kept.generated, kept.reference
    other_a, other_b = (compare_tracks(groups) for groups in (kept.generated_groups, kept.reference_groups))
    everything = np.ones((len(a), len(b)), dtype=bool)
    expected = mean(a, a, other_a) + mean(b, b, other_b) - 2 * mean(a, b, everything)
    assert found.reference[2] == pytest.approx(expected, rel=1e-9)


def test_fd_at_infinity_is_the_same_with_and_without_intervals() -> None:
    sets = draw_sets(0, shift=0.3, tracks=30)
    found = replicate_metrics(sets, Folds.of(sets, 6), ["fd_inf"])["fd_inf"]
    assert found.value == pytest.approx(measure_quality(sets)["fd_inf"])


def test_a_metric_without_a_fast_way_is_computed_again() -> None:
    """Distance to the teacher's clips: a function of the generated side alone."""
    sets = draw_sets(0, shift=0.3, tracks=12)
    sets = replace(sets, teacher=sets.generated + draws(24, 4, seed=9), teacher_groups=sets.generated_groups)
    folds = Folds.of(sets, 4)
    found = replicate_metrics(sets, folds, ["sample_distance"])["sample_distance"]
    assert found.generated[1] == compute("sample_distance", sets.select(generated=folds.generated != 1))
    assert set(found.reference) == {found.value}
    low, high = estimate_intervals(sets, ["sample_distance"], groups=4, confidence=0.9)["sample_distance"]
    assert low < found.value < high


# --- the jackknife


def test_jackknife_of_a_mean_is_students_interval() -> None:
    """One row a group: the variance of a mean is s^2 / n exactly."""
    values = draws(12, 1)[:, 0]
    without = [np.delete(values, i).mean() for i in range(12)]
    low, high = scipy.stats.t.interval(0.9, 11, loc=values.mean(), scale=scipy.stats.sem(values))
    assert jackknife_half_width(without, confidence=0.9) == pytest.approx((high - low) / 2)


def test_jackknife_of_a_difference_of_means_is_welchs_interval() -> None:
    a, b = draws(12, 1)[:, 0], 3 * draws(9, 1, seed=1)[:, 0]
    sides = [[np.delete(x, i).mean() for i in range(len(x))] for x in (a, b)]
    welch = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert jackknife_half_width(*sides, confidence=0.95) == pytest.approx((welch.high - welch.low) / 2)


def test_no_variation_has_no_width() -> None:
    assert jackknife_half_width([1.0, 1.0, 1.0], [1.0, 1.0], confidence=0.95) == 0


def test_no_track_is_in_two_folds_and_folds_have_equally_many() -> None:
    tracks = np.array([7, 7, 7, 3, 3, 9, 1, 1, 4, 4, 5])
    folds = deal_tracks(len(tracks), tracks, 3)
    members = [set(tracks[folds == fold]) for fold in range(3)]
    assert sorted(len(member) for member in members) == [2, 2, 2]
    assert set.union(*members) == set(tracks)
    assert [set(part) for part in assign_groups(tracks, 3)] == members
    assert len(assign_groups(tracks, 20)) == 6  # no more than tracks


# --- ends


def test_ends_of_shares_stay_within_0_and_1() -> None:
    sets = draw_sets(0, shift=0.2, tracks=12)
    found = estimate_intervals(sets, NAMES, groups=20, confidence=0.999)
    values = measure_quality(sets)
    assert all(found[name][0] <= values[name] <= found[name][1] for name in NAMES)
    assert all(found[name][0] >= 0 and found[name][1] <= 1 for name in ("precision", "recall", "coverage"))
    assert found["fd"][0] >= 0
    assert found["density"][0] >= 0


def test_a_precision_of_0_allows_what_so_many_tracks_would_miss_by_chance() -> None:
    """No clip of n tracks inside: at a share of 1 - .05^(1/n), that has a probability of 5 %."""
    found = estimate_intervals(draw_sets(0, shift=50.0), ["precision", "coverage"], groups=20, confidence=0.95)
    assert found == {name: (0, pytest.approx(1 - 0.05 ** (1 / 60))) for name in ("precision", "coverage")}
    one = draw_sets(0, shift=0.0)
    shrunk = replace(one, generated=0.01 * one.generated)
    assert estimate_intervals(shrunk, ["precision"], groups=20, confidence=0.95)["precision"] == (
        pytest.approx(0.05 ** (1 / 60)),
        1,
    )


def test_intervals_need_four_tracks_and_neighbours_beyond_a_fold() -> None:
    sets = draw_sets(0, shift=0.5, tracks=3)
    assert estimate_intervals(sets, NAMES, groups=20, confidence=0.95) == {}
    assert explain_missing_intervals(sets) == "no intervals: generated clips are of 3 track(s), and intervals need 4"
    few = draw_sets(0, shift=0.5, tracks=8)  # 7 tracks without one of 8 folds, 4 without one of two
    assert explain_missing_intervals(few) == ""
    assert estimate_intervals(few, NAMES, groups=20, confidence=0.95).keys() == set(NAMES)
    without_neighbors = estimate_intervals(few, NAMES, groups=2, confidence=0.95).keys()
    assert without_neighbors == {"mmd", "fd", "fd_inf"}


def test_every_metric_that_is_computed_gets_an_interval() -> None:
    sets = draw_sets(0, shift=0.5)
    sets = replace(sets, teacher=sets.reference, teacher_groups=sets.generated_groups)
    computed = [name for name, metric in METRICS.items() if metric.compute]
    found = estimate_intervals(sets, [*METRICS, "unknown"], groups=5, confidence=0.95)
    assert list(found) == computed
    assert all(np.isfinite(ends).all() for ends in found.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_the_metrics_that_are_computed_together(family: str) -> None:
    sets = draw_sets(0, shift=0.5)
    members = {name for name, metric in METRICS.items() if metric.family == family}
    assert FAMILIES[family](sets, Folds.of(sets, 5)).keys() == members
