"""The registry through its commands, on a database and a folder: versions found, compared, drawn."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pipelines.inference.lazy_mlflow import save_mlflow_model
from pipelines.registry.names import CANDIDATE, CHAMPION, Reference, RegistryError, candidate_alias, parse_reference
from pipelines.registry.publish import publish
from pipelines.registry.resolve import resolve
from pipelines.registry.search_filter import parse_filter
from pipelines.storage.filesystem import open_folder
from tests.support.tiny_registry import TinyRegistry, presto

pytestmark = pytest.mark.usefixtures("in_registry_folder")


def test_each_method_has_its_candidate_and_the_newest_is_the_candidate(home: TinyRegistry):
    by_alias = {alias: v.artifact_id for v in home.catalog.list_all() for alias in v.aliases if v.kind == "generator"}
    assert by_alias[candidate_alias("S")] == home.made["S"].id
    assert by_alias[candidate_alias("LS")] == by_alias[CANDIDATE] == home.made["LS"].id
    assert home.catalog.find("candidate-l").artifact_id == home.made["L"].id


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("presto-generator", Reference("presto-generator", CANDIDATE)),
        ("champion", Reference("presto-generator", CHAMPION)),
        ("candidate-ls", Reference("presto-generator", "candidate-ls")),
        ("v3", Reference("presto-generator", number=3)),
        ("mine@v12", Reference("mine", number=12)),
        ("models:/presto-generator@champion", Reference("presto-generator", CHAMPION)),
        ("models:/presto-generator/3", Reference("presto-generator", number=3)),
        ("0123456789abcdef", None),
        ("s3://bucket/artifacts/x", None),
    ],
)
def test_references(text: str, meant: Reference | None):
    assert parse_reference(text) == meant


def test_a_version_is_found_by_every_name_it_has(home: TinyRegistry):
    version = home.catalog.find("presto-generator@candidate-ls")
    for name in (f"v{version.number}", f"presto-generator@{version.content[:10]}", version.artifact_id, "candidate"):
        assert home.catalog.find(name) == version, name
    assert resolve(home.tracker.client, "models:/presto-generator@candidate-ls", home.root).id == version.artifact_id


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("presto-generator@champoin", "presto-generator@champoin.*presto-generator@candidate-ls"),
        ("presto-generator@v99", "presto-generator@v99"),
        ("presto-generator@deadbeef", "presto-generator@deadbeef"),
        ("ffffffffffffffff", "ffffffffffffffff"),
        ("models:/x", "'models:/x'.*models:/presto-generator@champion"),
        ("a/b", "'a/b'"),
    ],
)
def test_an_unknown_version_is_named(home: TinyRegistry, reference: str, message: str):
    with pytest.raises(RegistryError, match=message):
        home.catalog.find(reference)


def test_registering_again_makes_no_version_and_the_run_has_its_lineage(home: TinyRegistry):
    before = len(home.catalog.list_all())
    run = home.client.get_run(home.catalog.find("candidate-s").mlflow_run)
    for _ in range(2):
        publish(
            home.client,
            "presto-generator",
            home.made["S"],
            mlflow_run=run.info.run_id,
            stage="distill-steps",
            root=open_folder(home.root),
            pack=save_mlflow_model,
        )
    assert len(home.catalog.list_all()) == before
    assert re.fullmatch("[0-9a-f]{64}", run.data.tags["presto.environment"])
    inputs = {i.tags[0].value: i.dataset.digest for i in run.inputs.dataset_inputs}
    assert inputs == {"dataset": home.made["data"].id, "teacher": home.made["base"].id}
    home.register(home.made["LS"], "presto-generator", "distill-steps")  # candidate again


def test_generator_metrics_have_their_own_step_axis(home: TinyRegistry):
    run = home.catalog.find("candidate-ls").mlflow_run
    steps = [p.step for p in home.client.get_metric_history(run, "dmd_loss")]
    own = [p.step for p in home.client.get_metric_history(run, "generator_step.dmd_loss")]
    assert steps == [6]
    assert own == [1]


# --- search, list, show, diff, lineage


@pytest.mark.parametrize(
    ("query", "methods"),
    [
        ("", ["LS", "S", "L"]),
        ("fd < 1.5", ["LS"]),
        ("fd >= 0.96 and fd <= 0.97", ["LS"]),
        ("fd < 3 and latency_ms < 250", ["LS", "S"]),
        ("method = S", ["S"]),
        ("method != S and fd < 9", ["LS"]),
        ("licence = CC0", ["LS", "S", "L"]),
        ("steps.p_gen.kind = karras", ["LS", "S"]),
        ("created > 2020-01-01 and nfe = 4", ["LS", "S"]),
        ("created < 2020-01-01", []),
        ("hardware ~ made-up and embedding = eeee", ["LS", "S"]),
        ("layers.mode = 'presto'", ["L"]),
    ],
)
def test_search(home: TinyRegistry, query: str, methods: list[str]):
    clause = f"{query} and name = presto-generator" if query else "name = presto-generator"
    found = json.loads(presto(home, "search", clause, "--json"))
    assert [v["method"] for v in found] == methods


def test_search_by_parent_and_order(home: TinyRegistry):
    found = json.loads(presto(home, "search", f"parent = {home.made['base'].id} and fd < 9", "--order", "fd", "--json"))
    assert [v["method"] for v in found] == ["LS", "S"]
    assert found[0]["measured"]["fd"] < found[1]["measured"]["fd"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("fadd < 3", "'fadd'.*'fd'"),
        ("latency < 3", "'latency'.*'latency_ms'"),
        ("fd < three", "'fd' .*'three'"),
        ("fd ~ 3", "'fd' .*'~'"),
        ("method < S", "'method'.* '<'"),
        ("fd < 3 or fd > 5", "'or' .*'and'"),
        ("fd < 3 mmd < 1", "'mmd' .*'and'"),
        ("fd <", "'fd <'"),
        ("fd", "'fd'"),
        ("fd < 3 and", "''"),
        ("licence != MIT", "licence"),
        ("created < yesterday", "'created' .*'yesterday'"),
        ("method = `x`", "'`x`'"),
        ("quality < 1", "'quality'.* fd, "),
    ],
)
def test_a_wrong_filter_is_one_precise_message(query: str, message: str):
    with pytest.raises(RegistryError, match=message):
        parse_filter(query)


def test_list_show_and_diff(home: TinyRegistry):
    assert "presto-generator@v3" in presto(home, "list")
    shown = json.loads(presto(home, "show", "candidate-ls", "--json"))
    assert shown["parents"]["layers"] == home.made["L"].id
    assert shown["licences"] == ["CC0-1.0"]
    assert shown["params"]["steps.generator_updates"] == "1"
    assert home.made["base"].id in presto(home, "show", "candidate-ls")
    found = json.loads(presto(home, "diff", "candidate-s", "candidate-ls", "--json"))
    assert found["parents"] == {"layers": [None, home.made["L"].id]}
    assert found["version"]["method"] == ["S", "LS"]
    assert found["settings"] == {}
    assert "fd" in found["measured"]
    assert "fd" in presto(home, "diff", "candidate-s", "candidate-ls")


def test_lineage_goes_from_the_generator_to_the_data_and_its_svg_is_a_valid_file(home: TinyRegistry, tmp_path: Path):
    text = presto(home, "lineage", "candidate-ls", "--svg", str(tmp_path / "family.svg"))
    for line in ("layers: presto-generator@v1 L", "teacher: presto-teacher@v1", "dataset: presto-dataset@v1"):
        assert line in text
    assert ElementTree.parse(tmp_path / "family.svg").getroot().tag.endswith("}svg")
    family = json.loads(presto(home, "lineage", "candidate-ls", "--json"))
    edges = {(e["from"], e["to"]) for e in family["edges"]}
    ids = {name: artifact.id for name, artifact in home.made.items()}
    for parent, child in (("data", "base"), ("data", "L"), ("base", "L"), ("L", "LS"), ("base", "LS"), ("data", "LS")):
        assert (ids[parent], ids[child]) in edges
    assert len(edges) == 6
