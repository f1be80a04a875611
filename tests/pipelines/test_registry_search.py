"""Searches of the registry: numbers as numbers, days as days, texts as they are, on the tags of versions."""

from __future__ import annotations

import json
import re

import pytest

from pipelines.registry import names
from tests.support.small_versions import SmallRegistry, delete_run, run_presto

pytestmark = pytest.mark.usefixtures("in_shelf_folder")


@pytest.fixture(scope="module")
def searched(shelf: SmallRegistry) -> str:
    """A model with three versions: v1 and v2 of this release, and v3 as an earlier one registered it."""
    name = "searched"
    optim = {"optim": {"learning_rate": 5e-5}}
    shelf.add(name, settings={"layers": optim | {"mode": "presto"}, "seed": 3, "data": {"crop_frames": 0}})
    shelf.add(name, settings={"layers": {"optim": {"learning_rate": 2e-3}, "caption_dropout": 0.1}, "seed": 12})
    old = shelf.add(
        name, settings={"layers": {"optim": {"learning_rate": 1e-4}, "budget_conditioning": False}, "seed": 0}
    )
    shelf.client.delete_model_version_tag(name, str(old.number), names.SETTINGS)
    for key, value in {
        "layers.optim.learning_rate": "0.0001",
        "layers.budget_conditioning": "false",
        "seed": "0",
    }.items():
        shelf.client.log_param(old.mlflow_run, key, value)
    shelf.client.delete_run(old.mlflow_run)
    return name


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("layers.optim.learning_rate = 5e-5", [1]),
        ("layers.optim.learning_rate = 0.00005", [1]),
        ("layers.optim.learning_rate = 5.0e-05", [1]),
        ("layers.optim.learning_rate = 2.0e-3", [2]),
        ("layers.optim.learning_rate < 1e-3", [3, 1]),
        ("layers.optim.learning_rate >= 1E-4", [3, 2]),
        ("layers.optim.learning_rate != 5e-5", [3, 2]),
        ("layers.mode = presto", [1]),
        ("layers.mode ~ rest", [1]),
        ("layers.budget_conditioning = False", [3]),
        ("layers.caption_dropout = .1", [2]),
        ("seed = 3", [1]),
        ("seed = 12.0", [2]),
        ("seed < 5 and layers.optim.learning_rate > 6e-5", [3]),
        ("data.crop_frames = 0", [1]),
    ],
)
def test_settings_are_compared_as_what_they_are(searched: str, query: str, numbers: list[int]):
    found = json.loads(run_presto("search", f"{query} and name = {searched}", "--json").stdout)
    assert [v["version"] for v in found] == numbers


def test_settings_are_in_the_artifact_where_nothing_else_has_them(shelf: SmallRegistry):
    version = shelf.add("only-stored", settings={"seed": 77})
    shelf.client.delete_model_version_tag(version.name, "1", names.SETTINGS)
    delete_run(shelf, version, "gone")
    found = json.loads(run_presto("search", "seed = 77", "--json").stdout)
    assert [v["name"] for v in found] == [version.name]


@pytest.mark.parametrize("former", [False, True])
def test_a_data_set_is_found_by_its_size_with_and_without_tags(shelf: SmallRegistry, former: bool):
    sizes = {"rows": {"train": 100, "test": 23}, "hours": {"train": 1.5}}
    version = shelf.add(f"sized-{former}", kind="dataset", details={"dataset": sizes})
    if former:
        shelf.client.delete_model_version_tag(version.name, "1", f"{names.MEASURED}rows")
    found = json.loads(run_presto("search", f"rows = 123 and name = {version.name}", "--json").stdout)
    assert [v["name"] for v in found] == [version.name]


def test_a_date_is_a_whole_day_in_utc(shelf: SmallRegistry):
    version = shelf.add("dated")
    day, minute = version.created_at[:10], version.created_at[:16]
    for query, is_found in {
        f"created = {day}": True,
        f"created = {minute}": True,
        f"created = {minute}+00:00": True,
        f"created >= {day}": True,
        f"created <= {day}": True,
        f"created > {day}": False,
        f"created < {day}": False,
        f"created != {day}": False,
        "created = 2020-02-29": False,
    }.items():
        found = json.loads(run_presto("search", f"{query} and name = dated", "--json").stdout)
        assert bool(found) is is_found, query
    assert "UTC" in run_presto("search", f"created = {day}").stdout


@pytest.mark.parametrize("text", ["it's", 'a "made-up" one', "100%", "under_score", "back\\slash"])
def test_a_text_with_quotes_and_wildcards_is_found_and_nothing_else(shelf: SmallRegistry, text: str):
    version = shelf.add("texts", seed=text)
    tag = f"{names.MEASURED}hardware"
    shelf.client.set_model_version_tag(version.name, str(version.number), tag, f"a {text} processor")
    decoy = shelf.add("texts", seed="decoy")
    similar = re.sub(r"\W|_", "x", text)
    shelf.client.set_model_version_tag(decoy.name, str(decoy.number), tag, f"a {similar} processor")
    quote = "'" if '"' in text else '"'
    found = json.loads(run_presto("search", f"hardware ~ {quote}{text}{quote}", "--json").stdout)
    assert [v["version"] for v in found] == [version.number]


def test_more_matches_than_a_page_holds_are_found_in_order(shelf: SmallRegistry, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipelines.registry.search.SCAN_PAGE", 2)
    monkeypatch.setattr("pipelines.registry.search.BATCH", 2)
    versions = [shelf.add("paged", seed=str(n), settings={"seed": n}) for n in range(5)]
    for number, version in enumerate(versions):
        shelf.evaluate(version, fd=10.0 - number, mmd=0.1)
    args = ["search", "fd > 5 and name = paged", "--json"]
    assert [v["version"] for v in json.loads(run_presto(*args).stdout)] == [5, 4, 3, 2, 1]
    assert [v["version"] for v in json.loads(run_presto(*args, "--limit", "2").stdout)] == [5, 4]
    assert [v["version"] for v in json.loads(run_presto(*args, "--order", "fd", "--limit", "2").stdout)] == [5, 4]
    assert [v["version"] for v in json.loads(run_presto("search", "seed < 3 and name = paged", "--json").stdout)] == [
        3,
        2,
        1,
    ]
