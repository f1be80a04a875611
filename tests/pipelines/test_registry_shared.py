"""A registry whose MLflow other people use too: models of other tools, odd names, and runs that somebody deleted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlflow.runs
import pytest
from click.testing import CliRunner
from mlflow.utils.search_utils import SearchModelVersionUtils

from pipelines.registry import names
from pipelines.registry.names import CHAMPION, RegistryError
from pipelines.registry.promotion import Promoter
from pipelines.registry.promotion_log import PromotionLog
from pipelines.registry.publish import open_promotion_log_folder
from pipelines.registry.run_facts import find_run
from pipelines.registry.version_query import find_versions
from pipelines.tracking.client import open_tracker
from presto_core.config.overrides import ConfigError
from presto_core.config.promotion import PromoteConfig
from presto_core.config.sections import TrackingConfig
from tests.support.small_versions import ODD_NAMES, SmallRegistry, delete_run, run_presto

pytestmark = pytest.mark.usefixtures("in_shelf_folder")


# --- other tools


@pytest.mark.parametrize("command", ["list", "search", "verify", "gc"])
def test_what_other_tools_registered_is_skipped_and_counted(shelf: SmallRegistry, command: str):
    found = shelf.catalog.list_all()
    assert [v for v in found if not v.is_presto] == []
    done = run_presto(command, *(["name ~ e"] if command == "search" else []), f"storage.root={shelf.root}", "--json")
    assert f"{1 + len(ODD_NAMES)} models" in done.stderr
    payload = json.loads(done.stdout)
    if command == "verify":
        assert payload == {"versions": len(found), "problems": {}}
    elif command == "gc":
        assert payload["garbage"] == []
    else:
        assert {v["name"] for v in payload} <= {v.name for v in found}
    if command != "search":
        assert "2 versions" in done.stderr


def test_a_version_of_another_tool_is_named_where_it_is_requested(shelf: SmallRegistry):
    for reference in ("their-model@v1", "o'brien@v1", "presto-generator@v2"):
        with pytest.raises(RegistryError, match=re.escape(reference)):
            shelf.catalog.find(reference)


def test_gc_keeps_what_a_version_with_damaged_tags_refers_to(shelf: SmallRegistry):
    version = shelf.add("damaged-tags", seed="gc")
    shelf.client.set_model_version_tag("damaged-tags", "1", names.CONTENT, "edited by hand")
    assert "damaged-tags" not in {v.name for v in shelf.catalog.list_all()}
    garbage = json.loads(run_presto("gc", f"storage.root={shelf.root}", "--older-than-hours", "0", "--json").stdout)
    assert version.artifact_id not in str(garbage["garbage"])
    shelf.client.delete_registered_model("damaged-tags")


# --- odd names, which earlier releases and other tools registered


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_model_with_an_odd_name_is_registered_once_and_found_by_it(shelf: SmallRegistry, name: str):
    version = shelf.add(name, seed="odd")
    assert shelf.add(name, seed="odd").number == version.number
    assert [v.label for v in shelf.catalog.list_newest(name, limit=5)] == [version.label]
    assert shelf.catalog.find(f"{name}@{version.content[:9]}") == version
    assert [v["name"] for v in json.loads(run_presto("list", name, "--json").stdout)] == [name]
    shelf.client.delete_model_version(name, str(version.number))


def test_names_that_differ_in_a_quote_only_are_not_mixed_up(shelf: SmallRegistry):
    contents = {name: shelf.add(name, seed="quotes").content for name in ("d'or", 'd"or', "d_or", "D'or")}
    for name, content in contents.items():
        assert [v.content for v in shelf.catalog.list_newest(name, limit=9)] == [content]
        assert [v.name for v in find_versions(shelf.client, name=name)] == [name]
        shelf.client.delete_registered_model(name)


@pytest.mark.parametrize(
    "value", ["a'b", "''", "'; DROP", 'a"b', "a\\", "\\'", "%_[", "a\x00\n--b", "`", "' OR 1=1 --", "漢😀"]
)
def test_mlflows_parser_reads_every_value_as_one_text(value: str):
    queries: list[str] = []

    class Client:
        def search_model_versions(self, query: str, **options: Any) -> Any:
            queries.append(query)
            return type("Page", (list,), {"token": None})()

    list(find_versions(Client(), name=value, tags={"a.b": value}, contained={"c": [value]}))
    parsed = SearchModelVersionUtils.parse_search_filter(queries[0])
    assert [(clause["key"], len(clause["value"])) for clause in parsed] == [
        ("name", len(value)),
        ("a.b", len(value)),
        ("c", len(value) + 2),
    ]


def test_push_refuses_an_odd_name_before_it_reads_the_folder(shelf: SmallRegistry):
    for name in ("my/model", "o'brien", "champion"):
        with pytest.raises(ConfigError, match=re.escape(repr(name))):
            run_presto("push", "no-such-folder", "--name", name)


def test_names_and_tags_reach_the_terminal_without_escapes_and_markup(shelf: SmallRegistry):
    version = shelf.add("a[red]b", parents={"teacher": "0" * 16}, seed="markup")
    escape = shelf.add("esc\x1b[31m", seed="markup")
    label, shown = f"a[red]b@v{version.number}", f"esc\\x1b[31m@v{escape.number}"
    assert label in run_presto("list").stdout
    assert label in run_presto("lineage", label).stdout
    assert label in run_presto("promote", label, "--dry-run", code=1).output
    for args in (["list"], ["show", f"{escape.name}@v{escape.number}"], ["verify", f"{escape.name}@v{escape.number}"]):
        done = run_presto(*args)
        assert "\x1b" not in done.output
        assert args[0] == "verify" or shown in done.stdout
    for made in (version, escape):
        shelf.client.delete_model_version(made.name, str(made.number))


# --- deleted runs


@pytest.mark.parametrize("how", ["deleted", "gone"])
def test_a_version_whose_run_is_deleted_is_as_before(shelf: SmallRegistry, tmp_path: Path, how: str):
    name = f"run-{how}"
    version = shelf.add(name, settings={"steps": {"p_gen": {"kind": "karras"}}}, metrics={"d_real": 0.8, "d_fake": 0.1})
    other = shelf.add(name, settings={"steps": {"p_gen": {"kind": "lognormal"}}})
    shelf.evaluate(version, fd=2.5, mmd=0.01)
    reference = version.label
    before = json.loads(run_presto("show", reference, "--json").stdout)
    delete_run(shelf, version, how)
    assert json.loads(run_presto("show", reference, "--json").stdout) == before
    assert before["params"] == {"steps.p_gen.kind": "karras"}
    for query in ("fd < 3", "mmd = 0.01", "steps.p_gen.kind = karras", "hardware ~ made-up"):
        found = json.loads(run_presto("search", f"{query} and name = {name}", "--json").stdout)
        assert [v["version"] for v in found] == [version.number], query
    assert reference in run_presto("lineage", reference).stdout
    assert json.loads(run_presto("diff", reference, other.label, "--json").stdout)["settings"]
    run_presto("pull", reference, str(tmp_path / "pulled"))
    run_presto("verify", reference)
    decision = json.loads(run_presto("promote", reference, "--dry-run", "--json", code=1).stdout)
    assert {check["name"]: check["passed"] for check in decision["checks"]}["health"]


@pytest.mark.parametrize("how", ["deleted", "gone"])
def test_an_evaluation_is_recorded_on_the_version_and_names_the_run_it_could_not_write_to(
    shelf: SmallRegistry, capsys: pytest.CaptureFixture[str], how: str
):
    version = shelf.add(f"evaluated-{how}")
    shelf.evaluate(version, fd=2.5, mmd=0.01, density=0.5)
    delete_run(shelf, version, how)
    capsys.readouterr()
    shelf.evaluate(version, fd=1.5, mmd=0.02)
    warning = capsys.readouterr().err
    assert version.label in warning
    (found,) = shelf.catalog.list_newest(version.name, limit=1)
    assert {key: found.measurements.get(key) for key in ("fd", "mmd", "density")} == {
        "fd": 1.5,
        "mmd": 0.02,
        "density": None,
    }
    assert ("mlflow runs restore" in warning) == (how == "deleted")
    if how == "deleted":
        command = re.search(r"MLFLOW_TRACKING_URI=(\S+) mlflow runs (restore --run-id \w+)", warning)
        assert command
        env = {"MLFLOW_TRACKING_URI": command[1]}
        assert CliRunner().invoke(mlflow.runs.commands, command[2].split(), env=env).exit_code == 0
        shelf.evaluate(found, fd=1.5, mmd=0.02)
        assert find_run(shelf.client, version.mlflow_run).data.metrics[f"{names.METRIC}fd"] == 1.5
        assert version.label not in capsys.readouterr().err


# --- no champion, no registry


def test_rolling_back_the_first_promotion_leaves_no_champion(shelf: SmallRegistry):
    first, second = shelf.add("crowned", seed="1"), shelf.add("crowned", seed="2")
    promoter = Promoter(shelf.client, gate=lambda *_: [])
    promoter.promote(first.label, PromoteConfig(), why="first")
    promoter.promote(second.label, PromoteConfig(), why="better")
    rollback = ["rollback", "crowned", "--why", "it hums", "--json"]
    assert json.loads(run_presto(*rollback).stdout)["champion"]["version"] == 1
    dry = json.loads(run_presto(*rollback, "--dry-run").stdout)
    assert (dry["champion"], dry["was"]["version"]) == (None, 1)
    assert shelf.client.get_registered_model("crowned").aliases[CHAMPION] in (1, "1")
    assert json.loads(run_presto(*rollback).stdout)["champion"] is None
    aliases = shelf.client.get_registered_model("crowned").aliases
    assert CHAMPION not in aliases
    assert {alias for alias in aliases if alias.startswith("archived-")} == {"archived-1", "archived-2"}
    records = PromotionLog(open_promotion_log_folder(shelf.client, "crowned")).read_all()
    assert [(r.action, r.version) for r in records] == [
        ("promote", 1),
        ("promote", 2),
        ("rollback", 1),
        ("rollback", 0),
    ]
    assert "it hums" in run_presto("show", first.label).stdout
    run_presto("verify", first.label)
    with pytest.raises(RegistryError, match="crowned"):
        run_presto(*rollback)
    shelf.client.set_registered_model_alias("crowned", CHAMPION, "2")  # as a command that was killed leaves it
    run_presto("verify", first.label, code=1)
    assert CHAMPION not in shelf.client.get_registered_model("crowned").aliases
    assert promoter.promote(second.label, PromoteConfig(), why="after all").record
    assert json.loads(run_presto(*rollback).stdout)["champion"] is None


@pytest.mark.parametrize("uri", ["", "sqlite:///elsewhere.db"])
def test_reading_an_absent_registry_creates_none_and_names_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
):
    monkeypatch.chdir(tmp_path)
    settings = [f"tracking.uri={uri}"] if uri else []
    for args in (["list"], ["search", "fd < 3"]):
        done = run_presto(*args, *settings)
        assert "presto demo" in done.stderr
        assert json.loads(run_presto(*args, *settings, "--json").stdout) == []
    for args in (
        ["show", "champion"],
        ["verify"],
        ["gc", "--delete"],
        ["rollback", "x", "--why", "y"],
        ["lineage", "v1"],
    ):
        with pytest.raises(RegistryError, match="presto demo"):
            run_presto(*args, *settings)
    assert list(tmp_path.iterdir()) == []


def test_a_registry_without_a_version_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    open_tracker(TrackingConfig())
    done = run_presto("list")
    assert "presto demo" in done.stderr
    assert str(tmp_path) in done.stderr


def test_a_list_fits_a_narrow_terminal_with_long_names_and_licences(
    shelf: SmallRegistry, monkeypatch: pytest.MonkeyPatch
):
    licence = "public-domain composition; encoding distributed with music21, no rights statement in the file; rendered"
    version = shelf.add("a-name-" + "that-is-long-" * 6, kind="dataset", details={"dataset": {"licences": [licence]}})
    shelf.evaluate(version, fd=2.5, mmd=0.123, total_ms=12345.0)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("pipelines.terminal.ResultConsole.is_terminal", True)
    text = run_presto("list", version.name).stdout
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in text.splitlines()]
    assert max(map(len, lines)) <= 80
    joined = re.sub(r"\s", "", "".join(lines))
    assert version.content[:8] in joined
    assert "12345" in joined
    shelf.client.delete_registered_model(version.name)
