"""The table of metrics: quality from embeddings, former names, the page in docs, and what a new row reaches."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from presto_core.metrics.distances import mmd
from presto_core.metrics.frechet import frechet_distance, frechet_distance_infinity
from presto_core.metrics.prdc import prdc
from presto_core.metrics.sample_distance import sample_distance
from presto_core.metrics.table import (
    METRICS,
    EmbeddingSets,
    canonical_name,
    headline_metric,
    list_validation_metrics,
    measure_quality,
    rename_former,
    to_markdown,
)

RNG = np.random.default_rng(0)
GENERATED, REFERENCE, TEACHER = (RNG.normal(size=(40, 3)) + shift for shift in (0.0, 0.5, 1.0))

# what one row reaches, in a process of its own: the rows are read when modules are imported
NEW_METRIC = """
import json
import numpy as np
from presto_core.metrics import table

def mean_distance(sets):
    return float(np.linalg.norm(sets.generated.mean(0) - sets.reference.mean(0)))

table.METRICS["mean_distance"] = table.Metric(
    "mean_distance", "mean", "distance of the means", format=".3f", compute=mean_distance, validated=True,
    registry_name="mean_distance",
)
from pipelines.evaluate import report
from pipelines.registry.search_filter import parse_filter
from pipelines.sweep.plan import make_plan

sets = table.EmbeddingSets(np.zeros((4, 2)), np.full((4, 2), 3.0))
row = {"mean_distance": table.METRICS["mean_distance"].compute(sets)}
plan = make_plan(["sweeps/demo", "sweep.metrics=mean_distance"])
(clause,) = parse_filter("mean_distance < 2")
print(json.dumps({
    "value": row["mean_distance"],
    "measured": table.measure_quality(sets, validated_only=True)["mean_distance"],
    "cell": report._format_row(row, {"embedding": {"name": ""}})[-1],
    "column": report.COLUMNS[-1].title,
    "validated": table.list_validation_metrics()[-1],
    "sweep": plan.metric,
    "search": [clause.field, clause.is_setting],
}))
"""


def test_quality_is_that_of_the_metrics_own_functions() -> None:
    quality = measure_quality(EmbeddingSets(GENERATED, REFERENCE, TEACHER, nearest_k=3))
    expected = {
        "fd": frechet_distance(generated=GENERATED, reference=REFERENCE),
        "fd_inf": frechet_distance_infinity(generated=GENERATED, reference=REFERENCE),
        "sample_distance": sample_distance(generated=GENERATED, teacher=TEACHER),
        "mmd": mmd(generated=GENERATED, reference=REFERENCE),
        **prdc(generated=GENERATED, reference=REFERENCE, k=3),
    }
    assert quality == expected


@pytest.mark.parametrize(
    ("sets", "missing"),
    [
        (EmbeddingSets(GENERATED, REFERENCE, nearest_k=3), {"sample_distance"}),
        (EmbeddingSets(GENERATED, REFERENCE, TEACHER), {"precision", "recall", "density", "coverage"}),
        (EmbeddingSets(GENERATED, REFERENCE[:3], TEACHER, nearest_k=2), {"fd", "fd_inf"}),
    ],
)
def test_a_metric_is_left_out_if_its_sets_lack_what_it_needs(sets: EmbeddingSets, missing: set[str]) -> None:
    computed = {name for name, metric in METRICS.items() if metric.compute}
    assert measure_quality(sets).keys() == computed - missing


def test_frechet_distances_of_fewer_rows_than_twice_the_dimensions_are_left_out() -> None:
    wide = RNG.normal(size=(40, 21))
    few = measure_quality(EmbeddingSets(wide, RNG.normal(size=(90, 21)), nearest_k=3))
    assert few.keys() == {"mmd", "precision", "recall", "density", "coverage"}
    enough = measure_quality(EmbeddingSets(wide[:, :20], RNG.normal(size=(40, 20)), nearest_k=3))
    assert enough.keys() == few.keys() | {"fd", "fd_inf"}


def test_validations_compute_the_frechet_distance_of_few_rows() -> None:
    """All of a run have the same number of rows, and sweeps rank by it."""
    sets = EmbeddingSets(RNG.normal(size=(40, 30)), RNG.normal(size=(40, 30)))
    assert measure_quality(sets, validated_only=True)["fd"] == frechet_distance(
        generated=sets.generated, reference=sets.reference
    )


def test_nearest_neighbors_need_more_tracks_than_k() -> None:
    tracks = np.arange(40) // 10
    sets = EmbeddingSets(GENERATED, REFERENCE, nearest_k=3, generated_groups=tracks, reference_groups=tracks + 4)
    assert "precision" in measure_quality(sets)
    assert measure_quality(replace(sets, nearest_k=4)).keys() == {"mmd", "fd", "fd_inf"}


def test_what_prompts_reach_by_chance_stands_beside_what_they_reach() -> None:
    names = list(METRICS)
    for name in ("tempo_hits", "key_hits", "tag_hits"):
        assert names.index(f"{name}_shuffled") == names.index(name) + 1
        assert METRICS[f"{name}_shuffled"].better == ""


def test_validations_report_the_same_values_of_fewer_metrics() -> None:
    sets = EmbeddingSets(GENERATED, REFERENCE, TEACHER, nearest_k=3)
    validated = measure_quality(sets, validated_only=True)
    assert validated == {
        name: value for name, value in measure_quality(sets).items() if name in list_validation_metrics()
    }
    assert validated.keys() <= set(list_validation_metrics())


def test_metrics_know_which_rows_are_of_one_track() -> None:
    tracks = np.arange(40) // 4
    grouped = EmbeddingSets(
        GENERATED, REFERENCE, TEACHER, generated_groups=tracks, reference_groups=tracks + 10, teacher_groups=tracks
    )
    assert measure_quality(grouped) == {
        "fd": frechet_distance(generated=GENERATED, reference=REFERENCE),
        "fd_inf": frechet_distance_infinity(
            generated=GENERATED, reference=REFERENCE, generated_groups=tracks, reference_groups=tracks + 10
        ),
        "sample_distance": sample_distance(generated=GENERATED, teacher=TEACHER, groups=tracks),
        "mmd": mmd(generated=GENERATED, reference=REFERENCE, generated_groups=tracks, reference_groups=tracks + 10),
    }


def test_clips_of_other_prompts_than_the_teachers_are_refused() -> None:
    tracks = np.arange(40) // 4
    sets = EmbeddingSets(GENERATED, REFERENCE, TEACHER, generated_groups=tracks, teacher_groups=tracks + 1)
    with pytest.raises(ValueError, match="the teacher's clips are of other prompts"):
        measure_quality(sets)


def test_choosing_rows_takes_their_tracks_and_the_teachers_rows_along() -> None:
    tracks = np.arange(40)
    sets = EmbeddingSets(GENERATED, REFERENCE, TEACHER, generated_groups=tracks, reference_groups=tracks)
    chosen = sets.select(generated=tracks < 7, reference=tracks > 35)
    np.testing.assert_array_equal(chosen.generated, GENERATED[:7])
    np.testing.assert_array_equal(chosen.teacher, TEACHER[:7])
    np.testing.assert_array_equal(chosen.reference, REFERENCE[36:])
    assert chosen.generated_groups.tolist() == list(range(7))
    assert chosen.reference_groups.tolist() == [36, 37, 38, 39]
    assert chosen.teacher_groups is None


def test_systems_are_ranked_by_one_metric_which_validations_and_the_registry_hold() -> None:
    assert [metric.name for metric in METRICS.values() if metric.headline] == ["mmd"]
    assert headline_metric().name in list_validation_metrics()
    assert headline_metric().registry_name


def test_precision_recall_density_and_coverage_are_in_every_table() -> None:
    assert all(METRICS[name].column for name in ("precision", "recall", "density", "coverage"))


def test_no_name_is_used_twice() -> None:
    names = [name for metric in METRICS.values() for name in {metric.name, *metric.former_names}]
    assert len(names) == len(set(names))
    tags = [metric.registry_name for metric in METRICS.values() if metric.registry_name]
    assert len(tags) == len(set(tags))


def test_former_names_are_read_as_the_present_ones() -> None:
    stored = {"fd": 3.0, "sampling_ms": 20.0, "blocks": 24.0, "fd_to_base": 1.0, "system": "S 4"}
    assert rename_former(stored) == {
        "fd": 3.0,
        "latency_ms": 20.0,
        "blocks_run": 24.0,
        "fd_to_teacher": 1.0,
        "system": "S 4",
    }
    assert canonical_name("fd") == "fd"


def test_the_page_in_docs_is_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    assert to_markdown() in page


def test_a_new_metric_is_one_function_and_one_row() -> None:
    done = subprocess.run([sys.executable, "-c", NEW_METRIC], capture_output=True, text=True, timeout=120, check=True)

    assert json.loads(done.stdout) == {
        "value": pytest.approx(3 * 2**0.5),
        "measured": pytest.approx(3 * 2**0.5),
        "cell": "4.243",
        "column": "mean",
        "validated": "mean_distance",
        "sweep": "mean_distance",
        "search": ["mean_distance", False],
    }
