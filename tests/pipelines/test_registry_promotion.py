"""Promotion: checks, log and aliases, concurrent writers, kills; verify finds damage, gc removes garbage."""

from __future__ import annotations

import json
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors.numpy import load, save
from typer.testing import CliRunner

from infra.cli.main import app
from pipelines.inference.generator import load_generator
from pipelines.inference.lazy_mlflow import save_mlflow_model
from pipelines.registry.evaluation_tags import EMBEDDINGS
from pipelines.registry.names import CHAMPION, RegistryError
from pipelines.registry.promotion import Promoter
from pipelines.registry.promotion_log import PromotionLog
from pipelines.registry.publish import open_promotion_log_folder, publish
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.manifest import Artifact
from presto_core.artifacts.store import commit, read_bytes
from presto_core.config.promotion import PromoteConfig
from presto_core.errors import UserError
from tests.support.tiny_registry import TinyRegistry, aliases_of, edit, presto

pytestmark = pytest.mark.usefixtures("in_registry_folder")
LOOSE = PromoteConfig(require_health=False, interval_groups=10)


@pytest.fixture
def model(home: TinyRegistry, request: pytest.FixtureRequest) -> str:
    """A model per test with the versions S (v1), L (v2) and LS (v3)."""
    name = re.sub(r"\W+", "-", f"m-{request.node.name}")[:60]
    for of in ("S", "L", "LS"):
        home.register(home.made[of], name, "distill")
    home.add_report(home.made["S"], home.made["LS"], worse=(0.6, 0.4))
    return name


def test_promotion_and_rollback_are_recorded_and_mirrored(home: TinyRegistry, model: str):
    promoter = Promoter(home.client)
    first = promoter.promote(f"{model}@v1", LOOSE, why="it is the first")
    assert first.record, first.checks
    second = promoter.promote(f"{model}@v3", LOOSE, why="it is better")
    assert second.record, second.checks
    assert aliases_of(home, model)[CHAMPION] == 3
    assert aliases_of(home, model)["archived-1"] == 1
    former, was = promoter.rollback(model, why="it hums")
    assert (former.number, was.number) == (1, 3)
    aliases = aliases_of(home, model)
    assert aliases[CHAMPION] == 1
    assert aliases["archived-2"] == 3
    assert "archived-1" not in aliases
    entries = PromotionLog(open_promotion_log_folder(home.client, model)).read_all()
    assert [(e.action, e.version, e.why) for e in entries] == [
        ("promote", 1, "it is the first"),
        ("promote", 3, "it is better"),
        ("rollback", 1, "it hums"),
    ]
    assert all(e.who and e.when.startswith("20") for e in entries)
    assert home.client.get_model_version(model, "1").tags["presto.promotion.why"] == "it hums"


def test_a_worse_version_is_refused_with_a_table(home: TinyRegistry, model: str):
    promoter = Promoter(home.client)
    promoter.promote(f"{model}@v3", LOOSE, why="first")
    decision = promoter.promote(f"{model}@v1", LOOSE, why="worse")
    (failed,) = [check for check in decision.checks if not check.passed]
    assert failed.name == "against champion"
    assert decision.record is None
    assert aliases_of(home, model)[CHAMPION] == 3
    assert promoter.promote(f"{model}@v1", LOOSE.model_copy(update={"max_mmd_ratio": 9.0}), why="all the same").record


@pytest.mark.parametrize(
    ("limits", "failed"),
    [
        ({"max_mmd": 0.05}, "quality"),
        ({"max_fd": 0.5}, "quality"),
        ({"max_latency_ms": 1}, "latency"),
        ({"licences": ("MIT",)}, "licence"),
        ({"require_health": True}, "health"),
        ({}, None),
        ({"licences": ("CC*",), "max_fd": 50, "max_mmd": 5, "max_latency_ms": 500}, None),
    ],
)
def test_every_threshold_is_applied(home: TinyRegistry, limits: dict[str, object], failed: str | None):
    table = Promoter(home.client).promote(
        "candidate-ls", LOOSE.model_copy(update=limits), why="", dry_run=True
    ).checks  # fmt: skip
    assert [check.name for check in table if not check.passed] == ([failed] if failed else [])


def test_what_was_not_evaluated_or_not_trained_by_presto_is_refused(home: TinyRegistry, model: str):
    table = Promoter(home.client).promote(f"{model}@v2", PromoteConfig(), why="", dry_run=True).checks
    failed = {"health", "quality", "samples", "noise floor", "against teacher", "latency"}
    assert {check.name for check in table if not check.passed} == failed


def test_damage_in_storage_is_found_by_the_checks_and_by_verify(home: TinyRegistry, copy: Path, tmp_path: Path):
    elsewhere = TinyRegistry(str(tmp_path / "other"), home.tracker, {})
    presto(elsewhere, "push", str(copy), "--name", "damaged")
    presto(home, "verify", "damaged@v1")
    (version,) = home.catalog.list_newest("damaged", limit=1)
    path = Path(version.uri) / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    (Path(version.uri) / "planted.pkl").write_bytes(b"\x80\x04.")
    table = Promoter(home.client).promote("damaged@v1", LOOSE, why="", dry_run=True).checks
    assert "weights.safetensors" in next(check.found for check in table if check.name == "files")
    done = CliRunner().invoke(app, ["registry", "verify", "damaged@v1", "--json", *home.args()])
    assert done.exit_code == 1
    problems = json.loads(done.stdout)["problems"]["damaged@v1"]
    assert any("planted.pkl" in problem for problem in problems)
    home.client.delete_registered_model("damaged")


def test_promotions_at_the_same_time_leave_one_consistent_registry(home: TinyRegistry, model: str):
    """Every promotion is in the log once, in one order, and MLflow's champion is that of the last entry."""
    barrier = threading.Barrier(6)

    def one(number: int) -> None:
        barrier.wait(60)
        Promoter(home.client, gate=lambda *_: []).promote(f"{model}@v{1 + number % 3}", LOOSE, why=f"writer {number}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(one, range(6)))
    entries = PromotionLog(open_promotion_log_folder(home.client, model)).read_all()
    assert [e.number for e in entries] == list(range(1, len(entries) + 1))
    assert len({e.why for e in entries}) == len(entries)
    assert all(one.version != other.version for one, other in zip(entries, entries[1:]))
    assert aliases_of(home, model)[CHAMPION] == entries[-1].version


def test_registering_at_the_same_time_makes_one_version_of_one_content(home: TinyRegistry):
    run = home.catalog.find("candidate-s").mlflow_run
    barrier = threading.Barrier(4)

    def one(number: int) -> int:
        barrier.wait(60)
        root = open_folder(home.root)
        return publish(
            home.client, "at-once", home.made["S"], mlflow_run=run, stage="x", root=root, pack=save_mlflow_model
        ).number

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(one, range(4))) == {1}
    assert len(home.catalog.list_newest("at-once", limit=9)) == 1


def test_a_writer_that_died_after_its_claim_does_not_stop_others(home: TinyRegistry):
    """Killed between claiming a content and registering it."""
    content = home.catalog.find("candidate-s").content
    claims = Path(home.root) / "registry/abandoned/versions"
    claims.mkdir(parents=True)
    (claims / f"{content}.json").write_text('{"nonce": "gone", "when": 0}')
    home.register(home.made["S"], "abandoned", "x")
    assert [v.content for v in home.catalog.list_newest("abandoned", limit=9)] == [content]


def test_an_alias_that_was_left_behind_by_a_kill_is_fixed(home: TinyRegistry, model: str):
    promoter = Promoter(home.client)
    promoter.promote(f"{model}@v1", LOOSE, why="first")
    home.client.set_registered_model_alias(model, CHAMPION, "2")  # as if the command had died before it set the alias
    done = CliRunner().invoke(app, ["registry", "verify", f"{model}@v1", *home.args()])
    assert done.exit_code == 1
    assert aliases_of(home, model)[CHAMPION] == 1
    presto(home, "verify", f"{model}@v1")


def test_the_commands_promote_and_roll_back(home: TinyRegistry, model: str):
    loose = ["promote.require_health=false", "promote.interval_groups=5"]
    refused = CliRunner().invoke(
        app, ["registry", "promote", f"{model}@v1", "promote.max_fd=0.1", *loose, "--why", "x"]
    )
    assert refused.exit_code == 1
    assert "FAIL" in refused.stdout
    with pytest.raises(RegistryError, match="--why"):
        presto(home, "promote", f"{model}@v1", *loose)
    presto(home, "promote", f"{model}@v1", *loose, "--dry-run")
    assert CHAMPION not in aliases_of(home, model)
    assert "pass" in presto(home, "promote", f"{model}@v1", *loose, "--why", "first")
    presto(home, "promote", f"{model}@v3", *loose, "--why", "better")
    payload = json.loads(presto(home, "rollback", model, "--why", "it hums", "--json"))
    assert payload["champion"]["version"] == 1
    assert "it hums" in presto(home, "show", f"{model}@champion")


def test_a_first_champion_that_is_worse_than_its_teacher_is_refused_unless_accepted(home: TinyRegistry, model: str):
    home.add_report(home.made["S"], worse=(1.0,), teacher_off=0.6)
    args = ["promote.require_health=false", "promote.interval_groups=10"]
    refused = CliRunner().invoke(app, ["registry", "promote", f"{model}@v1", *args, "--why", "x", *home.args()])
    assert refused.exit_code == 1
    assert "--accept-worse" in " ".join(refused.output.split())
    with pytest.raises(RegistryError, match="--why"):
        presto(home, "promote", f"{model}@v1", *args, "--accept-worse")
    assert CHAMPION not in aliases_of(home, model)
    text = presto(home, "promote", f"{model}@v1", *args, "--why", "ten times as fast", "--accept-worse")
    assert "accepted" in text
    (entry,) = PromotionLog(open_promotion_log_folder(home.client, model)).read_all()
    assert (entry.why, entry.list_accepted()) == ("ten times as fast", ["against teacher"])
    (check,) = [check for check in entry.checks if check["name"] == "against teacher"]
    assert not check["passed"]
    assert check["numbers"]["ratio"] > check["numbers"]["limits"][1]
    assert home.client.get_model_version(model, "1").tags["presto.promotion.accepted"] == "against teacher"
    assert "against teacher" in presto(home, "show", f"{model}@champion")


def test_accepting_worse_quality_waives_no_other_check(home: TinyRegistry, model: str):
    home.add_report(home.made["S"], worse=(1.0,), teacher_off=0.6)
    limits = LOOSE.model_copy(update={"licences": ("MIT",)})
    decision = Promoter(home.client).promote(f"{model}@v1", limits, why="x", accept_worse=True)
    assert (decision.record, decision.list_accepted()) == (None, ["against teacher"])
    assert [check.name for check in decision.checks if check.outcome == "FAIL"] == ["licence"]


def test_what_passes_is_not_recorded_as_accepted(home: TinyRegistry, model: str):
    record = Promoter(home.client).promote(f"{model}@v1", LOOSE, why="good", accept_worse=True).record
    assert record
    assert record.list_accepted() == []
    assert home.client.get_model_version(model, "1").tags["presto.promotion.accepted"] == "nothing"


def test_a_decision_as_json_has_all_numbers(home: TinyRegistry, model: str):
    args = ["promote.require_health=false", "--dry-run", "--json"]
    payload = json.loads(presto(home, "promote", f"{model}@v3", *args))
    assert (payload["passed"], payload["promoted"], payload["accepted"]) == (True, False, [])
    numbers = {check["name"]: check["numbers"] for check in payload["checks"]}
    assert numbers["samples"]["tracks"] == 300
    assert numbers["noise floor"]["interval"][0] < numbers["noise floor"]["interval"][1]
    assert numbers["against teacher"]["outcome"] == "good enough"


# --- maintenance


def test_gc_keeps_registered_artifacts_their_ancestors_and_those_of_active_runs(home: TinyRegistry, tmp_path: Path):
    root = tmp_path / "store"
    shutil.copytree(Path(home.root), root, ignore=shutil.ignore_patterns("registry"))
    orphan, half, at_work = (root / "artifacts" / (c * 16) for c in "abc")
    shutil.copytree(root / "artifacts" / home.made["S"].id, orphan)
    edit(orphan, id="a" * 16)
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"x" * 100)
    shutil.copytree(orphan, at_work)
    (root / "runs" / ("c" * 16)).mkdir(parents=True)
    other = TinyRegistry(str(root), home.tracker, {})
    assert json.loads(presto(other, "gc", "--json"))["garbage"] == []  # all artifacts are young
    found = json.loads(presto(other, "gc", "--older-than-hours", "0", "--json"))
    assert {Path(g["uri"]).name for g in found["garbage"]} == {"a" * 16, "b" * 16}
    assert orphan.exists()
    presto(other, "gc", "--older-than-hours", "0", "--delete")
    assert not orphan.exists()
    assert not half.exists()
    assert at_work.exists()
    for artifact in home.made.values():
        assert (root / "artifacts" / artifact.id).exists()


# --- loading


def test_a_registered_model_is_loaded_from_python(home: TinyRegistry):
    for reference in ("models:/presto-generator@candidate-ls", "candidate-ls", home.made["LS"].id):
        assert load_generator(reference, storage_root=home.root).artifact.id == home.made["LS"].id
    with pytest.raises(UserError, match="presto-generator@champion"):
        load_generator()


# --- reports that do not compare


@pytest.fixture
def evaluated(home: TinyRegistry) -> Artifact:
    """The report of a candidate, LS, beside that of the champion, S; measured as in the reports of other tests."""
    model = "compared"
    for of in ("S", "LS"):
        home.register(home.made[of], model, "distill")
    home.add_report(home.made["S"], worse=(0.6,))
    promoter = Promoter(home.client)
    assert promoter.promote(f"{model}@v1", PromoteConfig(require_health=False), why="it is the first").has_passed
    return home.add_report(home.made["LS"], worse=(0.4,))


def check_against_champion(home: TinyRegistry) -> str:
    """Promote the candidate: what the comparison with the champion found, and the fix; empty if it passes."""
    checks = Promoter(home.client).promote("compared@v2", PromoteConfig(require_health=False), why="", dry_run=True)
    return next((f"{c.found}; {c.fix}" for c in checks.checks if c.name == "against champion" and not c.passed), "")


def test_reports_with_other_embedders_or_splits_are_not_compared(home: TinyRegistry, evaluated: Artifact) -> None:
    folder, manifest = open_folder(evaluated.uri), evaluated.manifest
    assert check_against_champion(home) == ""
    commit(folder, {**manifest, "report": {**manifest["report"], "measure": "another"}}, {})
    found = check_against_champion(home)
    assert "different measures" in found
    assert f"made-up {'e' * 12} on data set {home.made['data'].id}" in found
    assert f"inputs.compared=[{home.made['S'].id}]" in found
    arrays = load(read_bytes(folder, EMBEDDINGS))
    moved = {name: array + 10**6 if name.endswith("/tracks") else array for name, array in arrays.items()}
    commit(folder, manifest, {EMBEDDINGS: save(moved)})
    assert "different splits" in check_against_champion(home)


def test_a_report_from_before_the_splits_names_what_it_lacks(home: TinyRegistry, evaluated: Artifact) -> None:
    folder, manifest = open_folder(evaluated.uri), evaluated.manifest
    former = {name: value for name, value in manifest["report"].items() if "split" not in name}
    commit(folder, {**manifest, "report": former}, {})
    table = Promoter(home.client).promote("compared@v2", LOOSE, why="", dry_run=True).checks
    failed = {check.name: check for check in table if not check.passed}
    assert failed.keys() == {"samples", "noise floor", "against teacher", "against champion"}
    for check in failed.values():
        assert evaluated.id in check.found
        assert "validation split" in check.found
        assert f"inputs.generator={home.made['LS'].id}" in check.fix
    commit(folder, manifest, {})
    arrays = load(read_bytes(folder, EMBEDDINGS))
    on_test = {name.replace("validation/", "test/"): array for name, array in arrays.items()}
    commit(folder, manifest, {EMBEDDINGS: save(on_test)})  # without validation clips
    assert "validation split" in check_against_champion(home)
