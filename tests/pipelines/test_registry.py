"""The register through its verbs, on a data base and a folder: found, compared, moved, promoted, verified, cleaned."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from infra.cli import app
from pipelines.loading import load_generator
from pipelines.registry import transfer
from pipelines.registry.filters import parse
from pipelines.registry.gate import ratio_interval
from pipelines.registry.names import CANDIDATE, CHAMPION, Reference, RegistryError, candidate_of, parse_reference
from pipelines.registry.promotion import Promoter
from pipelines.registry.publishing import publish, record_folder
from pipelines.registry.record import Record
from pipelines.storage import open_folder
from presto_core.config.errors import UserError
from presto_core.config.promotion import PromoteConfig
from presto_core.registry.allowed import RefusedError
from presto_core.registry.manifest import read_artifact
from tests.pipelines.registry_home import Home, files_below, make_home

LOOSE = PromoteConfig(require_health=False, bootstrap_draws=20)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A family of five, made once; tests go to its folder."""
    place, before = tmp_path_factory.mktemp("register"), Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        os.chdir(place)
        made = make_home(str(place / "store"))
        made.judged(made.made["S"], made.made["LS"], worse=(0.6, 0.4))
        os.chdir(before)
        yield made


@pytest.fixture(autouse=True)
def _there(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(Path(home.root).parent)


def presto(home: Home, *words: str) -> str:
    """What a verb prints, if it is well; both streams are one."""
    done = CliRunner().invoke(app, ["registry", *words, *home.words()], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def aliases_of(home: Home, model: str) -> dict[str, int]:
    """A data base gives numbers, a server texts."""
    return {alias: int(number) for alias, number in home.client.get_registered_model(model).aliases.items()}


# --- versions, aliases, references


def test_each_method_has_its_candidate_and_the_newest_is_the_candidate(home: Home):
    by_alias = {alias: v.artifact_id for v in home.catalog.everything() for alias in v.aliases if v.kind == "generator"}
    assert by_alias[candidate_of("S")] == home.made["S"].id
    assert by_alias[candidate_of("LS")] == by_alias[CANDIDATE] == home.made["LS"].id
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


def test_a_version_is_found_by_every_name_it_has(home: Home):
    version = home.catalog.find("presto-generator@candidate-ls")
    for name in (f"v{version.number}", f"presto-generator@{version.content[:10]}", version.artifact_id, "candidate"):
        assert home.catalog.find(name) == version, name
    assert home.tracker.resolve("models:/presto-generator@candidate-ls", home.root).id == version.artifact_id


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("presto-generator@champoin", r"has no presto-generator@champoin; it has .*presto-generator@candidate-ls"),
        ("presto-generator@v99", r"has no presto-generator@v99"),
        ("presto-generator@deadbeef", r"no version presto-generator@deadbeef"),
        ("ffffffffffffffff", r"no version ffffffffffffffff"),
        ("models:/x", r"write models:/presto-generator@champion"),
        ("a/b", r"names no version"),
    ],
)
def test_an_unknown_version_is_named(home: Home, reference: str, message: str):
    with pytest.raises(RegistryError, match=message):
        home.catalog.find(reference)


def test_registering_again_makes_no_version_and_the_run_knows_its_origin(home: Home):
    before = len(home.catalog.everything())
    run = home.client.get_run(home.catalog.find("candidate-s").mlflow_run)
    for _ in range(2):
        publish(
            home.client,
            "presto-generator",
            home.made["S"],
            mlflow_run=run.info.run_id,
            stage="distill-steps",
            root=open_folder(home.root),
        )
    assert len(home.catalog.everything()) == before
    assert re.fullmatch("[0-9a-f]{64}", run.data.tags["presto.environment"])
    inputs = {i.tags[0].value: i.dataset.digest for i in run.inputs.dataset_inputs}
    assert inputs == {"dataset": home.made["data"].id, "teacher": home.made["base"].id}
    home.register(home.made["LS"], "presto-generator", "distill-steps")  # candidate again


def test_the_generator_has_an_axis_of_its_own(home: Home):
    run = home.catalog.find("candidate-ls").mlflow_run
    steps = [p.step for p in home.client.get_metric_history(run, "dmd_loss")]
    own = [p.step for p in home.client.get_metric_history(run, "generator_step.dmd_loss")]
    assert steps == [6]
    assert own == [1]


# --- looking


@pytest.mark.parametrize(
    ("asked", "methods"),
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
def test_search(home: Home, asked: str, methods: list[str]):
    clause = f"{asked} and name = presto-generator" if asked else "name = presto-generator"
    found = json.loads(presto(home, "search", clause, "--json"))
    assert [v["method"] for v in found] == methods


def test_search_by_parent_and_order(home: Home):
    found = json.loads(presto(home, "search", f"parent = {home.made['base'].id} and fd < 9", "--order", "fd", "--json"))
    assert [v["method"] for v in found] == ["LS", "S"]
    assert found[0]["measured"]["fd"] < found[1]["measured"]["fd"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("fadd < 3", "did you mean 'fd'"),
        ("latency < 3", "did you mean 'latency_ms'"),
        ("fd < three", "compares 'fd' with 'three', which is no number"),
        ("fd ~ 3", "compares the number 'fd' by '~'"),
        ("method < S", "compares 'method', which is text, by '<'"),
        ("fd < 3 or fd > 5", "has 'or' where 'and' is expected: search twice"),
        ("fd < 3 mmd < 1", "has 'mmd' where 'and' is expected"),
        ("fd <", "not understood at 'fd <'"),
        ("fd", "not understood at 'fd'"),
        ("fd < 3 and", "not understood|where 'and'"),
        ("licence != MIT", "cannot exclude a licence"),
        ("created < yesterday", "is no date"),
        ('method = "x\' or 1=1"', "quotes or wildcards"),
        ("method = `x`", "quotes or wildcards"),
        ("quality < 1", "is not known; known: fd, "),
    ],
)
def test_a_wrong_filter_is_one_precise_sentence(asked: str, message: str):
    with pytest.raises(RegistryError, match=message):
        parse(asked)


def test_list_show_and_diff(home: Home):
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


def test_lineage_goes_from_the_generator_to_the_data_and_its_picture_may_be_stored(home: Home, tmp_path: Path):
    text = presto(home, "lineage", "candidate-ls", "--svg", str(tmp_path / "family.svg"))
    for line in ("layers: presto-generator@v1 L", "teacher: presto-teacher@v1", "dataset: presto-dataset@v1"):
        assert line in text
    with (tmp_path / "family.svg").open("rb") as stream:
        from presto_core.registry.allowed import require_content

        require_content("family.svg", stream, (tmp_path / "family.svg").stat().st_size)
    family = json.loads(presto(home, "lineage", "candidate-ls", "--json"))
    edges = {(e["from"], e["to"]) for e in family["edges"]}
    ids = {name: artifact.id for name, artifact in home.made.items()}
    for parent, child in (("data", "base"), ("data", "L"), ("base", "L"), ("L", "LS"), ("base", "LS"), ("data", "LS")):
        assert (ids[parent], ids[child]) in edges
    assert len(edges) == 6


# --- moving


def test_pull_then_push_elsewhere_keeps_the_version(home: Home, tmp_path: Path):
    presto(home, "pull", "candidate-ls", str(tmp_path / "mine"))
    assert files_below(tmp_path / "mine") == files_below(Path(home.made["LS"].uri))
    assert json.loads(presto(home, "pull", "candidate-ls", str(tmp_path / "mine"), "--json"))["pulled"] is False
    elsewhere = Home(str(tmp_path / "other"), home.tracker, {})
    presto(elsewhere, "push", str(tmp_path / "mine"), "--name", "pushed", "--dry-run")
    assert "pushed" not in home.catalog.models
    for _ in range(2):
        presto(elsewhere, "push", str(tmp_path / "mine"), "--name", "pushed")
    (version,) = home.catalog.newest("pushed", limit=5)
    assert version.content == home.catalog.find("candidate-ls").content
    assert Path(version.uri).is_relative_to(tmp_path / "other")
    assert version.parents == home.catalog.find("candidate-ls").parents
    home.register(home.made["LS"], "pushed", "distill-steps")  # the same content, where it was made
    (version,) = home.catalog.newest("pushed", limit=5)
    assert version.uri == home.made["LS"].uri


def test_pull_goes_on_where_it_was_cut(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    artifact = home.made["data"]
    from pipelines.registry import ranges

    monkeypatch.setattr(ranges, "PART_BYTES", 1000)
    monkeypatch.setattr(transfer, "THREADS", 1)
    asked: list[ranges.Part] = []

    def breaking(source: object, part: ranges.Part, path: Path) -> None:
        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.append(part)
        fetch(source, part, path)

    fetch = ranges.fetch
    monkeypatch.setattr(transfer, "fetch", breaking)
    with pytest.raises(KeyboardInterrupt):
        transfer.pull(artifact, open_folder(artifact.uri), tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
    again: list[ranges.Part] = []
    monkeypatch.setattr(transfer, "fetch", lambda source, part, path: (again.append(part), fetch(source, part, path)))
    assert transfer.pull(artifact, open_folder(artifact.uri), tmp_path / "mine")
    assert not set(asked) & set(again)
    assert files_below(tmp_path / "mine") == files_below(Path(artifact.uri))
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.fixture
def copy(home: Home, tmp_path: Path) -> Path:
    shutil.copytree(home.made["S"].uri, tmp_path / "copy")
    return tmp_path / "copy"


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


HOSTILE_FOLDERS = {
    "planted pickle": (lambda f: (f / "state.pkl").write_bytes(b"\x80\x04."), "holds state.pkl, which"),
    "planted module": (lambda f: (f / "x.py").write_text("x"), "holds x.py"),
    "hidden file": (lambda f: (f / ".env").write_text("x"), r"holds \.env"),
    "link": (lambda f: (f / "link.json").symlink_to("/etc/passwd"), "is a symbolic link"),
    "link in place of weights": (
        lambda f: ((f / "weights.safetensors").unlink(), (f / "weights.safetensors").symlink_to("/etc/passwd")),
        "is a symbolic link",
    ),
    "linked folder": (lambda f: (f / "audio").symlink_to("/tmp"), "is a symbolic link"),
    "pipe": (lambda f: os.mkfifo(f / "pipe.json"), "is a device, a pipe or a socket"),
    "missing file": (lambda f: (f / "weights.safetensors").unlink(), "lacks weights.safetensors"),
    "changed byte": (
        lambda f: (f / "config.yaml").write_bytes((f / "config.yaml").read_bytes()[:-1] + b"#"),
        r"config.yaml has sha256 .* where its manifest says",
    ),
    "longer file": (lambda f: (f / "config.yaml").open("a").write("#") and None, "bytes where its manifest says"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json does not exist"),
    "manifest of noise": (lambda f: (f / "manifest.json").write_bytes(b"\x80\x04"), "is damaged"),
    "manifest a list": (lambda f: (f / "manifest.json").write_text("[]"), "is no manifest"),
    "file outside": (lambda f: edit(f, files={"../x.json": {"sha256": "a" * 64, "bytes": 1}}), "leads out"),
    "id outside": (lambda f: edit(f, id="../../x"), "is not 16 hexadecimal"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE_FOLDERS)
def test_a_hostile_folder_is_not_pushed(home: Home, copy: Path, tmp_path: Path, case: str):
    spoil, says = HOSTILE_FOLDERS[case]
    spoil(copy)
    with pytest.raises(UserError, match=says):
        transfer.push(copy, open_folder(str(tmp_path / "target")))
    assert not (tmp_path / "target").exists()


def test_a_folder_whose_hash_is_right_and_kind_is_wrong_is_not_pushed(copy: Path, tmp_path: Path):
    import hashlib

    content = b"\x80\x04\x95 a pickle that the manifest vouches for"
    (copy / "weights.safetensors").write_bytes(content)
    said = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    files = json.loads((copy / "manifest.json").read_text())["files"]
    edit(copy, files=files | {"weights.safetensors": said})
    with pytest.raises(RefusedError, match=r"weights\.safetensors is refused: it holds a pickle"):
        transfer.push(copy, open_folder(str(tmp_path / "target")))


def spoiled_storage(copy: Path, case: str) -> str:
    """Spoil what lies in storage, as who may write there could; returns what must be said."""
    if case == "other bytes":
        path = copy / "weights.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
        return "came with sha256"
    if case == "shorter file":
        path = copy / "weights.safetensors"
        path.write_bytes(path.read_bytes()[:-10])
        return "truncated"
    if case == "missing file":
        (copy / "config.yaml").unlink()
        return "cannot read|does not exist"
    if case == "file outside":
        edit(copy, files={"../../escaped.json": {"sha256": "a" * 64, "bytes": 1}})
        return "outside its folder|leads out"
    if case == "absolute file":
        edit(copy, files={"/tmp/escaped.json": {"sha256": "a" * 64, "bytes": 1}})
        return "outside its folder|is absolute"
    if case == "planted pickle":
        (copy / "x.pkl").write_bytes(b"\x80\x04.")
        edit(copy, files={"x.pkl": {"sha256": "a" * 64, "bytes": 3}})
        return "of no known type"
    edit(copy, parents={})
    return "where the registry says"


@pytest.mark.parametrize(
    "case",
    [
        "other bytes",
        "shorter file",
        "missing file",
        "file outside",
        "absolute file",
        "planted pickle",
        "other manifest",
    ],
)
def test_hostile_storage_writes_nothing_outside_and_nothing_that_is_not_right(home: Home, copy: Path, case: str):
    content = home.catalog.find("candidate-s").content
    says = spoiled_storage(copy, case)
    place = copy.parent / "place"
    place.mkdir()
    before = {p for p in copy.parent.rglob("*") if not p.is_relative_to(place)}
    with pytest.raises(UserError, match=says):
        transfer.pull(read_artifact(open_folder(str(copy))), open_folder(str(copy)), place / "mine", content=content)
    assert not (place / "mine").exists()
    assert {p for p in copy.parent.rglob("*") if not p.is_relative_to(place)} == before
    assert not Path("/tmp/escaped.json").exists()


@pytest.mark.parametrize("how", ["link", "link inside", "file"])
def test_a_pull_follows_no_link_that_lies_in_its_way(home: Home, tmp_path: Path, how: str):
    artifact, content = home.made["S"], home.catalog.find("candidate-s").content
    partial = tmp_path / f".mine.{content[:12]}.partial"
    outside = tmp_path / "outside"
    outside.mkdir()
    if how == "link":
        partial.symlink_to(outside)
    elif how == "link inside":
        partial.mkdir()
        (partial / "weights.safetensors").symlink_to(outside / "weights")
    else:
        partial.write_text("x")
    with pytest.raises(RefusedError, match=r"symbolic link|in the way"):
        transfer.pull(artifact, open_folder(artifact.uri), tmp_path / "mine", content=content)
    assert not list(outside.iterdir())


# --- promotion


@pytest.fixture
def model(home: Home, request: pytest.FixtureRequest) -> str:
    """A model of one's own with the versions S (v1), L (v2) and LS (v3), so that tests do not meet."""
    name = re.sub(r"\W+", "-", f"m-{request.node.name}")[:60]
    for of in ("S", "L", "LS"):
        home.register(home.made[of], name, "distill")
    home.judged(home.made["S"], home.made["LS"], worse=(0.6, 0.4))
    return name


def test_promotion_and_rollback_are_recorded_and_mirrored(home: Home, model: str):
    promoter = Promoter(home.client)
    first = promoter.promote(f"{model}@v1", LOOSE, why="it is the first")
    assert first.entry, first.table
    second = promoter.promote(f"{model}@v3", LOOSE, why="it is better")
    assert second.entry, second.table
    assert aliases_of(home, model)[CHAMPION] == 3
    assert aliases_of(home, model)["archived-1"] == 1
    former, was = promoter.rollback(model, why="it hums")
    assert (former.number, was.number) == (1, 3)
    aliases = aliases_of(home, model)
    assert aliases[CHAMPION] == 1
    assert aliases["archived-2"] == 3
    assert "archived-1" not in aliases
    with pytest.raises(RegistryError, match="no champion before this one"):
        promoter.rollback(model, why="once more")
    entries = Record(record_folder(home.client, model)).entries()
    assert [(e.action, e.version, e.why) for e in entries] == [
        ("promote", 1, "it is the first"),
        ("promote", 3, "it is better"),
        ("rollback", 1, "it hums"),
    ]
    assert all(e.who and e.when.startswith("20") for e in entries)
    assert home.client.get_model_version(model, "1").tags["presto.promotion.why"] == "it hums"


def test_a_worse_version_is_refused_with_a_table(home: Home, model: str):
    promoter = Promoter(home.client)
    promoter.promote(f"{model}@v3", LOOSE, why="first")
    decision = promoter.promote(f"{model}@v1", LOOSE, why="worse")
    (failed,) = [check for check in decision.table if not check.passed]
    assert failed.name == "against champion"
    assert decision.entry is None
    assert aliases_of(home, model)[CHAMPION] == 3
    assert promoter.promote(f"{model}@v1", LOOSE.model_copy(update={"max_fd_ratio": 9.0}), why="all the same").entry


@pytest.mark.parametrize(
    ("limits", "failed"),
    [
        ({"max_fd": 0.5}, "quality"),
        ({"max_latency_ms": 1}, "latency"),
        ({"licences": ("MIT",)}, "licence"),
        ({"require_health": True}, "health"),
        ({}, None),
        ({"licences": ("CC*",), "max_fd": 50, "max_latency_ms": 500}, None),
    ],
)
def test_every_threshold_is_heeded(home: Home, limits: dict[str, object], failed: str | None):
    table = Promoter(home.client).promote(
        "candidate-ls", LOOSE.model_copy(update=limits), why="", dry_run=True
    ).table  # fmt: skip
    assert [check.name for check in table if not check.passed] == ([failed] if failed else [])


def test_what_was_not_evaluated_or_not_trained_here_is_refused(home: Home, model: str):
    table = Promoter(home.client).promote(f"{model}@v2", PromoteConfig(), why="", dry_run=True).table
    assert {check.name for check in table if not check.passed} == {"health", "quality", "latency"}


def test_damage_in_storage_is_seen_by_the_gate_and_by_verify(home: Home, copy: Path, tmp_path: Path):
    elsewhere = Home(str(tmp_path / "other"), home.tracker, {})
    presto(elsewhere, "push", str(copy), "--name", "damaged")
    presto(home, "verify", "damaged@v1")
    (version,) = home.catalog.newest("damaged", limit=1)
    path = Path(version.uri) / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    (Path(version.uri) / "planted.pkl").write_bytes(b"\x80\x04.")
    table = Promoter(home.client).promote("damaged@v1", LOOSE, why="", dry_run=True).table
    assert "weights.safetensors is damaged" in next(check.found for check in table if check.name == "files")
    done = CliRunner().invoke(app, ["registry", "verify", "damaged@v1", "--json", *home.words()])
    assert done.exit_code == 1
    problems = json.loads(done.stdout)["problems"]["damaged@v1"]
    assert any("planted.pkl lies there" in said for said in problems)
    home.client.delete_registered_model("damaged")


def test_promotions_at_the_same_time_leave_one_consistent_register(home: Home, model: str):
    """Every decision is in the record once, in one order, and MLflow's champion is the last one's."""
    barrier = threading.Barrier(6)

    def one(number: int) -> None:
        barrier.wait(60)
        Promoter(home.client, judge=lambda *_: []).promote(f"{model}@v{1 + number % 3}", LOOSE, why=f"writer {number}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(one, range(6)))
    entries = Record(record_folder(home.client, model)).entries()
    assert [e.number for e in entries] == list(range(1, len(entries) + 1))
    assert len({e.why for e in entries}) == len(entries)
    assert all(one.version != other.version for one, other in zip(entries, entries[1:]))
    assert aliases_of(home, model)[CHAMPION] == entries[-1].version


def test_registering_at_the_same_time_makes_one_version_of_one_content(home: Home):
    run = home.catalog.find("candidate-s").mlflow_run
    barrier = threading.Barrier(4)

    def one(number: int) -> int:
        barrier.wait(60)
        root = open_folder(home.root)
        return publish(home.client, "at-once", home.made["S"], mlflow_run=run, stage="x", root=root).number

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(one, range(4))) == {1}
    assert len(home.catalog.newest("at-once", limit=9)) == 1


def test_a_writer_that_died_after_its_claim_does_not_stop_others(home: Home):
    """Killed between saying that it would register a content and doing so."""
    content = home.catalog.find("candidate-s").content
    claims = Path(home.root) / "registry/abandoned/versions"
    claims.mkdir(parents=True)
    (claims / f"{content}.json").write_text('{"nonce": "gone", "when": 0}')
    home.register(home.made["S"], "abandoned", "x")
    assert [v.content for v in home.catalog.newest("abandoned", limit=9)] == [content]


def test_an_alias_that_was_left_behind_by_a_kill_is_mended(home: Home, model: str):
    promoter = Promoter(home.client)
    promoter.promote(f"{model}@v1", LOOSE, why="first")
    home.client.set_registered_model_alias(model, CHAMPION, "2")  # as if the command had died before it followed
    done = CliRunner().invoke(app, ["registry", "verify", f"{model}@v1", *home.words()])
    assert done.exit_code == 1
    assert aliases_of(home, model)[CHAMPION] == 1
    presto(home, "verify", f"{model}@v1")


def test_the_verbs_promote_and_roll_back(home: Home, model: str):
    loose = ["promote.require_health=false", "promote.bootstrap_draws=10"]
    refused = CliRunner().invoke(
        app, ["registry", "promote", f"{model}@v1", "promote.max_fd=0.1", *loose, "--why", "x"]
    )
    assert refused.exit_code == 1
    assert "FAIL" in refused.stdout
    with pytest.raises(RegistryError, match="--why is empty"):
        presto(home, "promote", f"{model}@v1", *loose)
    presto(home, "promote", f"{model}@v1", *loose, "--dry-run")
    assert CHAMPION not in aliases_of(home, model)
    assert "pass" in presto(home, "promote", f"{model}@v1", *loose, "--why", "first")
    presto(home, "promote", f"{model}@v3", *loose, "--why", "better")
    said = json.loads(presto(home, "rollback", model, "--why", "it hums", "--json"))
    assert said["champion"]["version"] == 1
    assert "it hums" in presto(home, "show", f"{model}@champion")


def test_the_interval_of_a_ratio_holds_it_and_narrows_with_samples():
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((2000, 4))
    few, many = (rng.standard_normal((n, 4)) + 0.5 for n in (100, 1600))
    intervals = [ratio_interval(x + 0.2, x, reference, draws=60, confidence=0.9) for x in (few, many)]
    for low, ratio, high in intervals:
        assert low <= ratio <= high
        assert ratio == pytest.approx(0.7**2 / 0.5**2, rel=0.25)
    assert intervals[1][2] - intervals[1][0] < intervals[0][2] - intervals[0][0]
    assert ratio_interval(few, few, reference, draws=10, confidence=0.9) == (1.0, 1.0, 1.0)


# --- upkeep


def test_gc_keeps_what_is_registered_its_ancestors_and_what_is_at_work(home: Home, tmp_path: Path):
    root = tmp_path / "store"
    shutil.copytree(Path(home.root), root, ignore=shutil.ignore_patterns("registry"))
    orphan, half, at_work = (root / "artifacts" / (c * 16) for c in "abc")
    shutil.copytree(root / "artifacts" / home.made["S"].id, orphan)
    edit(orphan, id="a" * 16)
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"x" * 100)
    shutil.copytree(orphan, at_work)
    (root / "runs" / ("c" * 16)).mkdir(parents=True)
    other = Home(str(root), home.tracker, {})
    assert json.loads(presto(other, "gc", "--json"))["garbage"] == []  # all of it is young
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


def test_a_registered_model_is_loaded_from_python(home: Home):
    for reference in ("models:/presto-generator@candidate-ls", "candidate-ls", home.made["LS"].id):
        assert load_generator(reference, storage_root=home.root).artifact.id == home.made["LS"].id
    with pytest.raises(UserError, match="has no presto-generator@champion"):
        load_generator()
