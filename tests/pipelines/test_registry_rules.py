"""Rules of the registry without a registry: what fits together, how ancestors are followed and searches translated."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

import pytest

from pipelines.registry import names
from pipelines.registry.catalog import Catalog, Version
from pipelines.registry.compatibility import (
    check_comparable,
    check_layers_match_teacher,
    check_teacher_matches_dataset,
    compare_statistics,
    distillation_method,
)
from pipelines.registry.lineage import LineageGraph, render_svg, render_tree, trace_lineage
from pipelines.registry.names import RegistryError
from pipelines.registry.search_filter import list_settings, parse_filter, parse_period
from pipelines.tracking.tags import ARTIFACT_ID
from presto_core.artifacts.manifest import Artifact
from presto_core.errors import UserError

LATENTS = {"mean": [0.0], "std": [1.0], "codec": {"digest": "c"}, "text": {"digest": "t"}}
BUDGET = {"kept": [1, 2], "edges": [1.0], "distribution": {}, "mode": "presto"}
ASE = BUDGET | {"mode": "ase"}


def make_artifact(
    kind: str, budget: dict[str, Any] | None = None, parents: Sequence[str] = (), **more: Any
) -> Artifact:
    card = LATENTS | {"layer_budget": budget} | more
    return Artifact(
        f"id-{kind}", kind, f"store/{kind}", {"model": card, "parents": {role: role[0] for role in parents}}
    )


# --- what fits together


@pytest.mark.parametrize(
    ("kind", "budget", "parents", "method"),
    [
        ("teacher", None, (), "base"),
        ("layers", BUDGET, ("teacher",), "L"),
        ("layers", ASE, ("teacher",), "ASE"),
        ("generator", None, ("teacher",), "S"),
        ("generator", BUDGET, ("teacher",), "S-drop"),
        ("generator", BUDGET, ("teacher", "layers"), "LS"),
        ("generator", ASE, ("teacher", "layers"), "ASE-S"),
    ],
)
def test_the_method_follows_from_kind_table_and_parents(kind: str, budget: Any, parents: Sequence[str], method: str):
    assert distillation_method(make_artifact(kind, budget, parents)) == method


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"codec": {"digest": "x"}, "text": {"digest": "x"}}, "codec"),  # the first difference
        ({"text": {"digest": "x"}}, "text encoder"),
    ],
)
def test_codec_and_text_encoder_must_be_the_same_for_teacher_data_and_models(changed: dict[str, Any], named: str):
    dataset = make_dataset_artifact()
    teacher = make_artifact("teacher", parents=("dataset",))
    check_teacher_matches_dataset(teacher, dataset)
    check_comparable({"generator": make_artifact("generator")}, teacher)
    with pytest.raises(UserError, match=named):
        check_teacher_matches_dataset(make_artifact("teacher", parents=("dataset",), **changed), dataset)
    with pytest.raises(UserError, match=named):
        check_comparable({"generator": make_artifact("generator", **changed)}, teacher)


def make_dataset_artifact(**latents: Any) -> Artifact:
    info = {"codec": LATENTS["codec"], "text": LATENTS["text"], "latents": {"mean": [0.0], "std": [1.0]} | latents}
    return Artifact("d", "dataset", "store/d", {"dataset": info})


def test_models_and_their_teacher_have_the_same_latent_statistics():
    with pytest.raises(UserError, match="latent statistics"):
        check_comparable(
            {"generator": make_artifact("generator", std=[1.01])}, make_artifact("teacher", parents=("dataset",))
        )


@pytest.mark.parametrize(("key", "frames"), [("frames", 64), ("channels", 2)])
def test_clips_of_another_shape_are_refused(key: str, frames: int):
    other: dict[str, Any] = {key: frames + 1}
    teacher = make_artifact("teacher", parents=("dataset",), **other)
    with pytest.raises(UserError, match=rf"{frames + 1} {key}, .* have {frames};"):
        check_teacher_matches_dataset(teacher, make_dataset_artifact(**{key: frames}))


def test_the_difference_of_statistics_is_in_the_models_standard_deviations():
    """Closed form: channels with means 1 and 7 standard deviations apart, RMS 5; standard deviations twice as large."""
    model = {"mean": [0.0, 10.0], "std": [2.0, 2.0]}
    difference = compare_statistics(model, {"mean": [2.0, -4.0], "std": [4.0, 4.0]})
    assert (difference.mean_shift, difference.std_ratio) == (pytest.approx(5.0), pytest.approx(2.0))
    assert compare_statistics(model, model).is_zero


@pytest.mark.parametrize(
    ("latents", "is_refused"),
    [
        ({"mean": [1.9], "std": [1.9]}, False),
        ({"mean": [-1.9], "std": [0.51]}, False),
        ({"mean": [2.1]}, True),
        ({"std": [2.1]}, True),
        ({"std": [0.49]}, True),
    ],
)
def test_other_statistics_are_shown_and_only_absurd_ones_refused(
    latents: dict[str, Any], is_refused: bool, capsys: pytest.CaptureFixture[str]
):
    teacher, dataset = make_artifact("teacher", parents=("dataset",)), make_dataset_artifact(**latents)
    if is_refused:
        with pytest.raises(UserError, match=r"data set d and of teacher id-teacher: means differ by .* x"):
            check_teacher_matches_dataset(teacher, dataset)
    else:
        check_teacher_matches_dataset(teacher, dataset)
        assert "the teacher's are used" in " ".join(capsys.readouterr().err.split())


def test_same_statistics_are_not_mentioned(capsys: pytest.CaptureFixture[str]):
    check_teacher_matches_dataset(make_artifact("teacher", parents=("dataset",)), make_dataset_artifact())
    assert capsys.readouterr().err == ""


def test_an_artifact_of_another_kind_is_refused_by_its_uri():
    teacher, layers = make_artifact("teacher"), make_artifact("layers", BUDGET, ("teacher",))
    with pytest.raises(UserError, match=layers.uri):
        check_teacher_matches_dataset(layers, teacher)
    with pytest.raises(UserError, match=teacher.uri):
        check_layers_match_teacher(teacher, teacher)
    with pytest.raises(UserError, match=teacher.uri):
        check_comparable({"compared_0": teacher}, teacher)


@pytest.mark.parametrize("budget", [None, BUDGET | {"kept": [2, 1]}, {"kept": [1]}, BUDGET | {"edges": []}])
def test_layers_need_a_valid_table_and_the_same_teacher(budget: dict[str, Any] | None):
    teacher = Artifact("t", "teacher", "store/t", {"model": LATENTS, "parents": {}})
    check_layers_match_teacher(make_artifact("layers", BUDGET, ("teacher",)), teacher)
    with pytest.raises(UserError, match="id-layers"):
        check_layers_match_teacher(make_artifact("layers", budget, ("teacher",)), teacher)
    other = Artifact("o", "teacher", "store/o", teacher.manifest)
    with pytest.raises(UserError, match=r"inputs\.teacher=t"):
        check_layers_match_teacher(make_artifact("layers", BUDGET, ("teacher",)), other)


# --- ancestors


@dataclass
class ListedVersions:
    """The part of the catalog that ancestors are looked up in."""

    versions: dict[str, Version]
    requested: list[str] = field(default_factory=list)

    def find_by_artifacts(self, ids: list[str]) -> list[Version]:
        self.requested += ids
        return [self.versions[artifact] for artifact in ids if artifact in self.versions]


def make_family(**parents: dict[str, str]) -> LineageGraph:
    """The ancestors of `ls`: each name is an artifact's id."""
    versions = {
        child: Version(child, 1, (), {ARTIFACT_ID: child} | {f"{names.PARENT}{r}": p for r, p in of.items()}, "", 0)
        for child, of in parents.items()
    }
    catalog = ListedVersions(versions)
    graph = trace_lineage(cast(Catalog, catalog), versions["ls"])
    assert len(catalog.requested) == len(set(catalog.requested))
    assert not [artifact for artifact in catalog.requested if "/" in artifact]  # a checkpoint is no artifact
    return graph


def test_ancestors_are_followed_to_the_data_once_each():
    graph = make_family(
        ls={"teacher": "base", "layers": "l", "forked_from": "x/step-000000003"},
        l={"teacher": "base", "dataset": "data"},
        base={"dataset": "data"},
    )
    assert set(graph.parents) == {"ls", "l", "base", "data", "x/step-000000003"}
    edges = {(edge["from"], edge["to"], edge["role"]) for edge in graph.to_dict()["edges"]}
    assert ("data", "l", "dataset") in edges
    assert len(edges) == 6
    assert {n["id"] for n in graph.to_dict()["nodes"] if n["version"] is None} == {"data", "x/step-000000003"}


def test_a_tree_unfolds_an_ancestor_once_and_a_picture_has_one_box_each():
    graph = make_family(ls={"teacher": "base", "layers": "l"}, l={"teacher": "base"}, base={"dataset": "<data>"})
    tree = render_tree(graph)
    layers, teacher = tree.children
    assert [len(branch.children) for branch in (layers, layers.children[0], teacher)] == [1, 1, 0]
    svg = render_svg(graph)
    assert svg.count('class="node"') == len(graph.parents)
    assert svg.count("<polyline") == svg.count('class="role"') == 4
    assert "<data>" not in svg


# --- searches


@pytest.mark.parametrize(
    ("text", "field", "operator", "value"),
    [
        ("fd < 3", "fd", "<", "3"),
        ("fd==3", "fd", "=", "3"),
        ("layers.mode = 'presto'", "layers.mode", "=", "presto"),
        ('hardware ~ "a made-up processor"', "hardware", "~", "a made-up processor"),
    ],
)
def test_a_clause_is_a_field_an_operator_and_a_value(text: str, field: str, operator: str, value: str):
    (clause,) = parse_filter(text)
    assert (clause.field, clause.operator, clause.value) == (field, operator, value)


def test_clauses_are_joined_by_and():
    clauses = parse_filter("latency_ms <= 250 and method = S AND licence = CC0 and seed != 3 and created > 2026-01-31")
    assert [clause.field for clause in clauses] == ["latency_ms", "method", "licence", "seed", "created"]
    assert parse_filter("  ") == []


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("2026-11-29", "2026-11-29T00:00:00Z", "2026-11-29T23:59:59.999Z"),
        ("2026-11-29T13:05", "2026-11-29T13:05:00Z", "2026-11-29T13:05:59.999Z"),
        ("2026-11-29T13:05:07", "2026-11-29T13:05:07Z", "2026-11-29T13:05:07.999Z"),
        ("2026-11-29T01:00+02:00", "2026-11-28T23:00:00Z", "2026-11-28T23:00:59.999Z"),
    ],
)
def test_a_time_is_as_long_as_it_is_written_in_utc(text: str, first: str, last: str, monkeypatch: pytest.MonkeyPatch):
    expected = tuple(round(datetime.fromisoformat(end).timestamp() * 1000) for end in (first, last))
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    try:
        assert parse_period(text) == expected
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()


def test_every_setting_that_a_version_records_can_be_searched():
    settings = list_settings()
    for key in ("seed", "layers.optim.learning_rate", "steps.p_gen.kind", "ingest.source", "evaluate.num_samples"):
        assert key in settings
    assert {key.partition(".")[0] for key in settings} & {"storage", "tracking", "submit", "promote", "sweep"} == set()
    assert settings["layers.optim.learning_rate"] == {float}


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("layers.optim.lerning_rate = 5e-5", "layers.optim.learning_rate"),
        ("steps.p_gne.kind = karras", "steps.p_gen.kind"),
        ("learning_rate = 5e-5", "teacher.optim.learning_rate"),
        ("steps.p_gen = karras", "steps.p_gen.kind"),
        ("storage.root = x", "storage.root"),
        ("layers.mode < presto", "layers.mode"),
        ("seed < three", "three"),
    ],
)
def test_a_setting_that_cannot_be_compared_is_refused_with_a_suggestion(query: str, named: str):
    with pytest.raises(RegistryError, match=named):
        parse_filter(query)
