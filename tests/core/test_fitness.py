"""Fitness of metrics: the biased Fréchet distance fails on few samples, unbiased MMD does not; warnings of a report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace

import numpy as np
import pytest

from presto_core.metrics.embedding_sets import EmbeddingSets
from presto_core.metrics.fitness import check_fitness, shrink_generated
from presto_core.metrics.report_warnings import list_warnings
from presto_core.metrics.table import headline_metric
from tests.core.test_distances import Matrix, draw_tracks, draws

DIM, TRACKS = 60, 80


def make_sets(rows: Matrix, *, teacher: bool = False) -> EmbeddingSets:
    """Rows of 80 tracks, compared with the same reference every time."""
    reference, tracks = draw_tracks(TRACKS, 2, DIM, seed=1)
    one = EmbeddingSets(rows, reference, nearest_k=5, generated_groups=tracks + 1000, reference_groups=tracks)
    return replace(one, teacher=rows, teacher_groups=tracks + 1000) if teacher else one


@pytest.fixture(scope="module")
def real() -> Matrix:
    return draw_tracks(TRACKS, 2, DIM, seed=2)[0]


@pytest.fixture(scope="module")
def direction() -> Matrix:
    vector = draws(1, DIM, seed=3)[0]
    return vector / np.linalg.norm(vector)


def test_metrics_that_rank_growing_damage_and_do_not_reward_shrinking_are_fit(real, direction) -> None:
    codec, noise, shuffle = (make_sets(real + size * direction) for size in (2, 4, 7))
    found = check_fitness(real=make_sets(real), worse={"codec": codec, "noise": noise, "shuffled frames": shuffle})
    assert found["mmd"].fit
    assert found["fd_inf"].fit
    assert found["recall"].fit
    assert found["mmd"].reason == ""
    assert found["mmd"].state == "passed"
    values = list(found["mmd"].values.values())
    assert values[:4] == sorted(values[:4])
    assert values[4] > values[0]  # shrunk
    assert found.keys() == {"mmd", "fd", "fd_inf", "precision", "recall", "density", "coverage"}


def test_the_biased_frechet_distance_rewards_shrinking_and_is_not_fit(real) -> None:
    """As on real music: 7.70, and 6.97 for the same shrunk towards its mean."""
    found = check_fitness(real=make_sets(real), worse={})
    assert not found["fd"].fit
    assert found["fd"].state == "failed"
    real_value, shrunk_value = found["fd"].values["real music"], found["fd"].values["shrunk towards its mean"]
    assert shrunk_value < real_value
    assert found["fd"].reason == (
        f"shrunk towards its mean ({shrunk_value:.2f}) is better than real music ({real_value:.2f})"
    )
    assert found[headline_metric().name].fit


def test_density_and_precision_alone_reward_shrinking_and_recall_does_not(real) -> None:
    found = check_fitness(real=make_sets(real), worse={})
    assert {name for name in ("precision", "recall", "density") if found[name].fit} == {"recall"}


def test_an_order_that_is_turned_around_is_named(real, direction) -> None:
    found = check_fitness(
        real=make_sets(real), worse={"noise": make_sets(real + 7 * direction), "shuffled frames": make_sets(real)}
    )
    assert not found["mmd"].fit
    assert found["mmd"].reason.startswith("shuffled frames (")
    assert "is better than noise (" in found["mmd"].reason


def test_a_difference_within_chance_fails_nothing_and_is_listed(real) -> None:
    """Other tracks of the same distribution, so that one is better by chance."""
    other = make_sets(draw_tracks(TRACKS, 2, DIM, seed=50)[0])
    other = replace(other, generated_groups=np.asarray(other.generated_groups) + 1000)
    for first, second in ((make_sets(real), other), (other, make_sets(real))):
        found = check_fitness(real=first, worse={"codec": second})
        assert found["mmd"].fit
        assert found["mmd"].undecided == ["real music and codec"]
        assert found["mmd"].state == "undecided"


def test_a_verdict_is_json(real) -> None:
    found = check_fitness(real=make_sets(real, teacher=True), worse={})
    assert json.loads(json.dumps({name: asdict(one) for name, one in found.items()}))["fd"]["fit"] is False
    assert "sample_distance" not in found  # real music has no teacher


def test_there_is_no_verdict_without_intervals() -> None:
    rows, tracks = draws(12, 3, seed=1), np.arange(12) // 4
    sets = EmbeddingSets(rows, draws(12, 3), generated_groups=tracks, reference_groups=tracks)
    assert check_fitness(real=sets, worse={}) == {}


def test_shrinking_keeps_the_mean_and_scales_the_covariance(real) -> None:
    shrunk = shrink_generated(make_sets(real), 0.8).generated
    np.testing.assert_allclose(shrunk.mean(0), real.mean(0), atol=1e-12)
    np.testing.assert_allclose(np.cov(shrunk.T), 0.64 * np.cov(real.T), rtol=1e-9, atol=1e-12)


# --- warnings of a report


def make_report(**changes: object) -> dict[str, object]:
    rows = [
        {"name": "teacher 40", "intervals": {"mmd": [0.02, 0.03], "recall": [0.1, 0.2]}},
        {"name": "LS 4", "intervals": {"mmd": [0.001, 0.004]}},
        {"name": "S 4", "intervals": {"mmd": [0.0035, 0.01]}},
        {"name": "S 1"},
    ]
    report = {
        "systems": rows,
        "floor": {"intervals": {"mmd": [-0.001, 0.0036], "recall": [0.7, 0.8], "nfe": [0, 1]}},
        "embeddings": {"generated": 400, "reference": 900},
        "embedders": [{"name": "musicnn", "dim": 200}],
        "tracks": 300,
    }
    return report | changes


def test_systems_whose_interval_touches_that_of_real_music_are_named() -> None:
    assert list_warnings(make_report()) == ["MMD x 1000: too few clips to tell LS 4, S 4 from real music (-1.0 to 3.6)"]


def test_fewer_rows_than_twice_the_dimensions_are_warned_of() -> None:
    counts = {"generated": 900, "reference": 399}
    assert list_warnings(make_report(embeddings=counts, systems=[])) == [
        "FD and FD∞ are left out: 399 embeddings are fewer than twice their 200 dimensions"
    ]


def test_rows_are_compared_with_the_dimensions_of_every_embedder() -> None:
    embedders = [{"name": "musicnn", "dim": 200}, {"name": "clap", "dim": 512}]
    assert list_warnings(make_report(embedders=embedders, systems=[])) == [
        "FD and FD∞ on clap are left out: 400 embeddings are fewer than twice their 512 dimensions"
    ]


def test_too_few_tracks_are_warned_of() -> None:
    assert list_warnings(make_report(tracks=2, systems=[], floor={}, fitness={"musicnn": {}})) == [
        "no intervals: the music compared with is of 2 track(s), and intervals need 4",
        "the fitness of the metrics was not tested: that needs 4 tracks of each split of real music",
    ]
    (left_out,) = list_warnings(make_report(systems=[{"name": "S 4", "mmd": 0.1}, {"name": "S 8", "precision": 0.1}]))
    assert left_out.startswith("precision, recall, density, coverage of S 4 are left out: ")


# --- what a teacher must be for its students to count


NO_BASE = "the teacher does not count as a base yet: 8 steps (MMD x 1000 99.8) beat 40 (133.7); "
LITTLE = "its students show little about the methods"


def warn_of_teacher(*teachers: Mapping[str, object], precision: float = 0.93) -> list[str]:
    rows = [{"name": f"base {row['steps']}", "role": "teacher", **row} for row in teachers]
    student = {"name": "S 1", "role": "generator", "steps": 1, "mmd": 0.01, "precision": 0.9}
    return list_warnings(make_report(systems=[*rows, student], floor={"precision": precision}))


def test_a_teacher_whose_few_steps_beat_many_or_with_half_the_precision_is_warned_of() -> None:
    many, few = {"steps": 40, "mmd": 0.1337, "precision": 0.32}, {"steps": 8, "mmd": 0.0998, "precision": 0.9}
    precision = "precision 0.32 is below half of real music's 0.93; "
    assert warn_of_teacher(many, few) == [NO_BASE + precision + LITTLE]
    assert warn_of_teacher(many, few, precision=0.64) == [NO_BASE + LITTLE]


def test_a_teacher_that_gains_by_steps_is_a_base() -> None:
    worse = {"steps": 40, "mmd": 0.3, "precision": 0.8}  # another guidance: the best of 40 steps counts
    few = {"steps": 8, "mmd": 0.1, "precision": 0.8}
    assert warn_of_teacher(worse, {"steps": 40, "mmd": 0.09, "precision": 0.8}, few) == []
    assert warn_of_teacher({"steps": 40, "mmd": 0.09, "precision": 0.8}) == []


def test_a_teacher_is_compared_on_the_validation_split_if_it_was_measured_there() -> None:
    many = {"steps": 40, "mmd": 0.2, "precision": 0.8, "validation": {"mmd": 0.1}}
    few = {"steps": 8, "mmd": 0.1, "precision": 0.8, "validation": {"mmd": 0.2}}
    assert warn_of_teacher(many, few) == []
    assert len(warn_of_teacher(many | {"validation": {}}, few)) == 1
