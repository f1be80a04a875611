"""gc deletes nothing that it should not: another registry's root, an empty registry, what changes while it works."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pipelines.registry import garbage, root_identity
from pipelines.registry.garbage import GarbageCollector, GarbageItem, find_garbage
from pipelines.registry.names import CONTENT, RegistryError
from pipelines.registry.publish import publish
from pipelines.registry.root_identity import ForeignRootError, RegistryIdentity, list_claims
from pipelines.storage.filesystem import open_folder
from pipelines.storage.lease import hold_lease
from presto_core.artifacts.folder import MANIFEST, Folder
from presto_core.artifacts.manifest import artifact_folder, commit_artifact, read_artifact, run_folder
from presto_core.artifacts.manifest_schema import content_hash
from presto_core.artifacts.run_layout import LEASE, RUN_FILE
from presto_core.artifacts.store import StoreError
from tests.support.small_versions import SmallRegistry, open_small_registry, pack_nothing, run_presto

NOW = timedelta(0)
MANY = 1100  # more than MLflow returns at once


@pytest.fixture
def shelf(workdir: Path) -> SmallRegistry:
    """A new registry with two versions, one of which is made from the other."""
    made = open_small_registry(str(workdir / "store"))
    parent = made.add("presto-dataset", kind="dataset")
    made.add("presto-teacher", kind="teacher", parents={"dataset": parent.artifact_id})
    return made


@pytest.fixture
def other(shelf: SmallRegistry, tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder becomes one with another, empty registry."""
    folder = tmp_path / "other"
    (folder / ".presto").mkdir(parents=True)
    shutil.copy(mlflow_database, folder / ".presto/mlflow.db")
    monkeypatch.chdir(folder)


def add_artifact(root: Folder, artifact_id: str, **parents: str) -> Folder:
    folder = artifact_folder(root, artifact_id)
    commit_artifact(
        folder,
        kind="teacher",
        artifact_id=artifact_id,
        config_yaml="",
        parents=parents,
        files={"made.json": artifact_id.encode()},
        details={},
    )
    return folder


def run_gc(shelf: SmallRegistry, *args: str) -> dict[str, Any]:
    done = run_presto("gc", f"storage.root={shelf.root}", "--older-than-hours", "0", "--json", *args)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def list_names(payload: dict[str, Any]) -> set[str]:
    return {Path(item["uri"]).name for item in payload["garbage"]}


def list_files(root: str) -> set[str]:
    return {str(path.relative_to(root)) for path in Path(root).rglob("*") if path.is_file()}


def make_old(folder: Folder, days: float) -> None:
    for path in [Path(folder.path), *Path(folder.path).rglob("*")]:
        os.utime(path, (time.time() - days * 86400,) * 2)


# --- whose root it is


def test_a_new_root_records_its_registry_once(shelf: SmallRegistry):
    root = open_folder(shelf.root)
    identity = RegistryIdentity.read(shelf.client, shelf.tracker.experiment_id)
    assert list_claims(root) == identity.ids
    assert len(identity.ids) == 1
    assert run_gc(shelf)["garbage"] == []


@pytest.mark.parametrize("args", [[], ["--delete"], ["--delete", "--dry-run"]])
@pytest.mark.usefixtures("other")
def test_another_registry_is_refused_with_both_identities(shelf: SmallRegistry, args: list[str]):
    theirs = open_small_registry(shelf.root.replace("store", "other-store"))
    version = theirs.add("presto-dataset", kind="dataset")
    (claim,) = list_claims(open_folder(shelf.root))
    (own,) = RegistryIdentity.read(theirs.client, theirs.tracker.experiment_id).ids
    before = list_files(shelf.root)
    with pytest.raises(ForeignRootError, match=f"{claim}.*{own}"):
        run_gc(shelf, *args)
    assert list_files(shelf.root) == before
    assert version.artifact_id


@pytest.mark.usefixtures("other")
def test_a_root_that_two_registries_write_to_is_cleaned_by_neither(
    shelf: SmallRegistry, monkeypatch: pytest.MonkeyPatch
):
    theirs = open_small_registry(shelf.root)
    theirs.add("presto-generator", seed="theirs")
    assert len(list_claims(open_folder(shelf.root))) == 2
    for folder in (Path.cwd(), Path(shelf.root).parent):
        monkeypatch.chdir(folder)
        with pytest.raises(ForeignRootError, match="--adopt"):
            run_gc(shelf, "--delete")
    assert list_names(run_gc(shelf, "--adopt")) != set()  # on request only
    assert len(list_claims(open_folder(shelf.root))) == 1


def test_an_old_root_is_adopted_if_the_registry_knows_it(shelf: SmallRegistry):
    root = open_folder(shelf.root)
    shutil.rmtree(Path(shelf.root) / "identity")
    add_artifact(root, "a" * 16)
    assert list_names(run_gc(shelf)) == {"a" * 16}
    assert not list_claims(root)  # a list changes nothing
    assert list_names(run_gc(shelf, "--delete")) == {"a" * 16}
    assert len(list_claims(root)) == 1


@pytest.mark.usefixtures("other")
def test_an_old_root_is_not_adopted_by_a_registry_that_knows_little_of_it(shelf: SmallRegistry):
    shutil.rmtree(Path(shelf.root) / "identity")
    theirs = open_small_registry(shelf.root)
    theirs.add("presto-generator", seed="theirs")  # one of three artifacts is theirs
    assert not list_claims(open_folder(shelf.root))
    before = list_files(shelf.root)
    with pytest.raises(ForeignRootError, match=r"1 of its 3 artifacts.*--adopt"):
        run_gc(shelf, "--delete")
    assert list_files(shelf.root) == before


def test_an_empty_registry_makes_nothing_garbage(shelf: SmallRegistry):
    for name in ("presto-dataset", "presto-teacher"):
        shelf.client.delete_registered_model(name)
    before = list_files(shelf.root)
    for args in ([], ["--delete"], ["--delete", "--adopt"]):
        with pytest.raises(RegistryError, match="2 artifacts"):
            run_gc(shelf, *args)
    assert list_files(shelf.root) == before


def test_a_moved_project_and_a_moved_store_stay_theirs(
    shelf: SmallRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home = Path(shelf.root).parent
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    shutil.copytree(home, moved)
    shutil.rmtree(home)
    moved.joinpath("store").rename(moved / "elsewhere")
    monkeypatch.chdir(moved)
    run_presto("relocate")
    run_presto("relocate", "--from", str(moved / "store"), "--to", str(moved / "elsewhere"))
    at_new_path = SmallRegistry(str(moved / "elsewhere"), shelf.tracker)
    add_artifact(open_folder(at_new_path.root), "a" * 16)
    assert list_names(run_gc(at_new_path, "--delete")) == {"a" * 16}


def test_two_ids_of_one_registry_agree_with_either_root(shelf: SmallRegistry, tmp_path: Path):
    """Two commands that were the first ones at the same time each recorded an id."""
    shelf.client.set_experiment_tag("0", f"{root_identity.TAG}{'0' * 16}", "now")
    assert len(RegistryIdentity.read(shelf.client, shelf.tracker.experiment_id).ids) == 2
    run_gc(shelf)
    SmallRegistry(str(tmp_path / "second"), shelf.tracker).add("presto-report", kind="report")
    run_gc(SmallRegistry(str(tmp_path / "second"), shelf.tracker), "--delete")


# --- many


def test_more_models_than_a_page_are_all_read(shelf: SmallRegistry):
    """Each of them keeps an artifact, which the last page must do too."""
    root = open_folder(shelf.root)
    ids = [f"{number:016x}" for number in (0, 999, 1000, MANY - 1)]
    for artifact_id in ids:
        add_artifact(root, artifact_id)
    path = Path(shelf.root).parent / ".presto/mlflow.db"
    with closing(sqlite3.connect(path)) as database, database:
        names = [(f"m-{number:05d}",) for number in range(MANY)]
        database.executemany("INSERT INTO registered_models (name, workspace) VALUES (?, 'default')", names)
        database.executemany(
            "INSERT INTO model_versions (name, workspace, version, current_stage, creation_time) "
            "VALUES (?, 'default', 1, 'None', 0)",
            names,
        )
        database.executemany(
            "INSERT INTO model_version_tags (name, workspace, version, key, value) VALUES (?, 'default', 1, ?, ?)",
            [(name, "presto.artifact_id", f"{number:016x}") for number, (name,) in enumerate(names)],
        )
    add_artifact(root, "a" * 16)
    assert list_names(run_gc(shelf, "--delete")) == {"a" * 16}
    assert all(artifact_folder(root, artifact_id).exists() for artifact_id in ids)


# --- what changes while it works


@pytest.fixture
def collector(shelf: SmallRegistry) -> GarbageCollector:
    identity = RegistryIdentity.read(shelf.client, shelf.tracker.experiment_id)
    return GarbageCollector(identity, open_folder(shelf.root), NOW, timedelta(days=30))


def find_items(shelf: SmallRegistry) -> list[GarbageItem]:
    return find_garbage(
        open_folder(shelf.root), shelf.catalog.list_referenced(), older_than=NOW, runs_older_than=timedelta(days=30)
    )


def register(shelf: SmallRegistry, folder: Folder, name: str = "late") -> None:
    run = shelf.client.create_run(shelf.tracker.experiment_id).info.run_id
    publish(
        shelf.client,
        name,
        read_artifact(folder),
        mlflow_run=run,
        stage="made",
        root=open_folder(shelf.root),
        pack=pack_nothing,
    )


@pytest.mark.parametrize("change", ["registered", "child registered", "run starts from it", "run of it", "child made"])
def test_what_is_used_again_is_kept(shelf: SmallRegistry, collector: GarbageCollector, change: str):
    root = open_folder(shelf.root)
    folder = add_artifact(root, "a" * 16)
    (item,) = find_items(shelf)
    if change == "registered":
        register(shelf, folder)
    elif change == "child registered":
        register(shelf, add_artifact(root, "b" * 16, teacher="a" * 16))
    elif change == "child made":
        add_artifact(root, "b" * 16, teacher="a" * 16)
    else:
        run = Path(run_folder(root, "a" * 16 if change == "run of it" else "c" * 16).path)
        run.mkdir(parents=True)
        (run / RUN_FILE).write_text(json.dumps({"parents": {"teacher": "a" * 16}}))
    assert collector.delete(item)
    assert read_artifact(folder).id == "a" * 16


def test_what_is_at_work_is_kept(shelf: SmallRegistry, collector: GarbageCollector):
    root = open_folder(shelf.root)
    folder = add_artifact(root, "a" * 16)
    (item,) = find_items(shelf)
    with hold_lease(run_folder(root, "a" * 16).child(LEASE), "run a"):
        assert "run" in collector.delete(item) or "deletion" in collector.delete(item)
    assert folder.exists()
    assert collector.delete(item) == ""
    assert not Path(folder.path).exists()
    assert not Path(run_folder(root, "a" * 16).path).exists()


@pytest.mark.parametrize("what", ["registered", "being registered", "mlflow away"])
def test_a_version_that_is_made_during_the_deletion_gets_its_manifest_back(
    shelf: SmallRegistry, collector: GarbageCollector, monkeypatch: pytest.MonkeyPatch, what: str
):
    root = open_folder(shelf.root)
    folder = add_artifact(root, "a" * 16)
    content = content_hash(read_artifact(folder).manifest)
    (item,) = find_items(shelf)
    delete_file = Folder.delete_file
    leases: list[Any] = []

    def delete_and_change(self: Folder, name: str) -> None:
        if name == MANIFEST and self.uri == folder.uri:
            if what == "registered":
                shelf.client.create_registered_model("late")
                shelf.client.create_model_version("late", "s", tags={"presto.artifact_id": "a" * 16, CONTENT: content})
            elif what == "being registered":
                leases.append(hold_lease(root.child("registry/late/versions").child(content), "registering a"))
                leases[0].__enter__()
            else:
                monkeypatch.setattr(garbage, "find_versions", lambda *args, **how: 1 / 0)
        delete_file(self, name)

    monkeypatch.setattr(Folder, "delete_file", delete_and_change)
    if what == "mlflow away":
        with pytest.raises(ZeroDivisionError):
            collector.delete(item)
    else:
        assert "register" in collector.delete(item)
    for lease in leases:
        lease.__exit__(None, None, None)
    assert read_artifact(folder).id == "a" * 16


def test_an_artifact_that_is_deleted_during_registration_makes_no_version(shelf: SmallRegistry):
    folder = add_artifact(open_folder(shelf.root), "a" * 16)
    artifact = read_artifact(folder)

    def pack_and_lose(source: Path, target: Path) -> None:
        pack_nothing(source, target)
        folder.delete_file(MANIFEST)

    run = shelf.client.create_run(shelf.tracker.experiment_id).info.run_id
    with pytest.raises(StoreError, match=r"a{16}"):
        publish(
            shelf.client, "late", artifact, mlflow_run=run, stage="s", root=open_folder(shelf.root), pack=pack_and_lose
        )
    assert not shelf.client.search_model_versions("name = 'late'")


def test_another_registry_that_takes_the_root_over_ends_the_command(shelf: SmallRegistry, collector: GarbageCollector):
    folder = add_artifact(open_folder(shelf.root), "a" * 16)
    (item,) = find_items(shelf)
    (Path(shelf.root) / "identity" / f"{'f' * 16}.json").write_text("{}")
    with pytest.raises(ForeignRootError, match=r"f{16}"):
        collector.delete(item)
    assert folder.exists()


def test_the_manifest_goes_first_and_children_before_parents(
    shelf: SmallRegistry, collector: GarbageCollector, monkeypatch: pytest.MonkeyPatch
):
    """A command that is killed at any deletion leaves no artifact that looks whole, and none without its parents."""
    root = open_folder(shelf.root)
    add_artifact(root, "a" * 16)
    add_artifact(root, "b" * 16, teacher="a" * 16)
    add_artifact(root, "0" * 16, teacher="b" * 16)
    items = find_items(shelf)
    assert [item.id[0] for item in items] == ["0", "b", "a"]
    assert [item.why for item in items] == ["a teacher that is not registered"] * 3
    delete = Folder.delete

    def check_and_delete(self: Folder) -> None:
        assert "artifacts" not in self.path or not self.exists()
        delete(self)

    monkeypatch.setattr(Folder, "delete", check_and_delete)
    assert [collector.delete(item) for item in items] == ["", "", ""]
    assert {name[0] for name in root.child("artifacts").list_folders()} & {"a", "b"} == set()


def test_a_young_descendant_keeps_its_ancestors(shelf: SmallRegistry):
    root = open_folder(shelf.root)
    make_old(add_artifact(root, "a" * 16), days=9)
    add_artifact(root, "b" * 16, teacher="a" * 16)
    found = run_presto("gc", f"storage.root={shelf.root}", "--json")
    assert json.loads(found.stdout)["garbage"] == []


# --- abandoned runs


@pytest.fixture
def run(shelf: SmallRegistry) -> Folder:
    folder = run_folder(open_folder(shelf.root), "d" * 16)
    checkpoint = Path(folder.path) / "checkpoints/step-000000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    (checkpoint / "a.safetensors").write_bytes(b"1" * 1000)
    (Path(folder.path) / RUN_FILE).write_text(json.dumps({"parents": {"teacher": "a" * 16}}))
    return folder


def test_an_abandoned_run_is_collected_by_its_age(shelf: SmallRegistry, run: Folder):
    folder = add_artifact(open_folder(shelf.root), "a" * 16)
    assert run_gc(shelf)["garbage"] == []
    make_old(run, days=31)
    found = run_gc(shelf)
    assert list_names(found) == {"d" * 16, "a" * 16}
    assert next(item["bytes"] for item in found["garbage"] if item["uri"] == run.uri) > 1000
    assert run_gc(shelf, "--runs-older-than-days", "40")["garbage"] == []
    run_gc(shelf, "--delete")
    assert not Path(run.path).exists()
    assert not folder.exists()


def test_a_run_at_work_is_not_collected_however_old_its_files(
    shelf: SmallRegistry, run: Folder, collector: GarbageCollector
):
    with hold_lease(run.child(LEASE), "run d"):
        make_old(run, days=31)
        assert run_gc(shelf)["garbage"] == []
    make_old(run, days=31)
    (item,) = find_items(shelf)
    (Path(run.path) / "checkpoints/step-000000004/b").write_text("resumed")
    assert "resumed" in collector.delete(item)
    assert run.exists(RUN_FILE)
    assert re.search("d{16}", item.uri)
