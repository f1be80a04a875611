"""A project that was moved or copied is refused until its records are rewritten; a copy never touches the original."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infra.cli.main import app
from pipelines.registry.catalog import Catalog
from pipelines.registry.names import RegistryError
from pipelines.registry.relocation import Relocation, find_relocation, relocate
from pipelines.stages.runner import StageContext, run_stage
from pipelines.tracking.client import TrackingError, create_client, open_tracker
from presto_core.artifacts.manifest import Artifact, commit_artifact
from presto_core.config.loader import load_config
from presto_core.config.schema import RegistryStage
from presto_core.config.sections import TrackingConfig
from tests.support.processes import PATIENCE_S
from tests.support.tiny_registry import files_below

MODEL = "presto-report"
ROOT = "storage.root=store"


@pytest.fixture
def project(empty: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project, with a registered artifact in its own store, in a folder whose name needs quoting in a URI."""
    folder = empty / "my project"
    (folder / ".presto").mkdir(parents=True)
    shutil.copy(mlflow_database, folder / ".presto/mlflow.db")
    monkeypatch.chdir(folder)
    make_artifact(0)
    return folder


def make_artifact(seed: int) -> Artifact:
    """Run a stage, as a command does."""

    def execute(ctx: StageContext) -> None:
        target: dict[str, Any] = {"kind": "report", "artifact_id": ctx.run_id, "parents": {}}
        files = {"report.json": f'{{"seed": {seed}}}'.encode()}
        commit_artifact(ctx.artifact, **target, config_yaml="", files=files, details={"report": {}})

    config = load_config(RegistryStage, None, {"storage.root": "store", "seed": seed})
    return run_stage("made-up", config, execute, register_as=MODEL)


def presto(*args: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, args, catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output


def iter_texts(path: Path) -> Iterator[tuple[str, str]]:
    """Every text in a database, with its table."""
    with closing(sqlite3.connect(path)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for row in database.execute(f"SELECT * FROM {table}"):
                yield from ((table, value) for value in row if isinstance(value, str))


def find_texts(path: Path, prefix: Path) -> set[str]:
    """The tables that still hold a path."""
    forms = (str(prefix), prefix.as_uri())
    return {table for table, text in iter_texts(path) if any(form in text for form in forms) and table != "params"}


def test_a_copy_is_refused_until_it_is_relocated_and_never_touches_the_original(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    copy = project.parent / "copy"
    shutil.copytree(project, copy)
    before = files_below(project)
    monkeypatch.chdir(copy)
    for attempt in (lambda: make_artifact(1), lambda: presto("registry", "list", ROOT), lambda: presto("runs", ROOT)):
        with pytest.raises(TrackingError, match="copied") as refused:
            attempt()
        assert str(project) in str(refused.value)
        assert "presto registry relocate" in str(refused.value)
    presto("registry", "relocate", "--dry-run")
    assert find_texts(copy / ".presto/mlflow.db", project)
    presto("registry", "relocate")
    assert find_texts(copy / ".presto/mlflow.db", project) == set()
    assert [path.name for path in (copy / ".presto").glob("*.before-relocation-*")]
    presto("registry", "list", ROOT)
    presto("registry", "verify", f"{MODEL}@v1", ROOT)
    made = make_artifact(1)
    assert made.uri.startswith(str(copy))
    versions = Catalog(open_tracker(TrackingConfig()).client).list_newest(MODEL, limit=9)
    assert [Path(version.uri).is_relative_to(copy) for version in versions] == [True, True]
    assert files_below(project) == before


def test_a_moved_project_works_after_relocating_once(project: Path, monkeypatch: pytest.MonkeyPatch):
    moved = project.parent / "elsewhere/project"
    moved.parent.mkdir()
    project.rename(moved)
    monkeypatch.chdir(moved)
    with pytest.raises(TrackingError, match="moved"):
        make_artifact(0)
    presto("registry", "relocate")
    kept = list((moved / ".presto").glob("*.before-relocation-*"))
    assert "nothing to do" in presto("registry", "relocate")
    assert list((moved / ".presto").glob("*.before-relocation-*")) == kept
    make_artifact(0)  # reused, where it is now
    presto("registry", "verify", f"{MODEL}@v1", ROOT)
    client = open_tracker(TrackingConfig()).client
    (version,) = Catalog(client).list_newest(MODEL, limit=9)
    assert Path(client.download_artifacts(version.mlflow_run, "artifact/manifest.json")).is_file()
    assert not project.exists()


def test_another_name_of_the_same_folder_is_no_move(project: Path, monkeypatch: pytest.MonkeyPatch):
    link = project.parent / "link"
    link.symlink_to(project)
    monkeypatch.chdir(link)
    uri = f"sqlite:///{link}/.presto/mlflow.db"
    assert open_tracker(TrackingConfig(uri=uri)).find_run("a" * 16) is None
    assert find_relocation(TrackingConfig(uri=uri)) is None


def test_a_database_that_another_folder_uses_is_no_move(project: Path, monkeypatch: pytest.MonkeyPatch):
    """Its experiment was made from a folder that holds the files and no database."""
    other = project.parent / "other"
    (other / ".presto/mlartifacts").mkdir(parents=True)
    client, _ = create_client(TrackingConfig())
    client.create_experiment("shared", artifact_location=(other / ".presto/mlartifacts").as_uri())
    open_tracker(TrackingConfig())


def test_a_relocation_that_is_killed_changes_nothing_and_can_be_run_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
):
    moved = project.parent / "moved"
    project.rename(moved)
    monkeypatch.chdir(moved)
    code = (
        "import os, signal; from pipelines.registry import relocation as r; write = r._update_rows\n"
        "def die(connection, column, rows):\n"
        "    write(connection, column, rows)\n"
        "    if str(column) == 'tags.value': os.kill(os.getpid(), signal.SIGKILL)\n"
        "r._update_rows = die; config = r.TrackingConfig(); r.relocate(config, r.find_relocation(config))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=PATIENCE_S)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(TrackingError, match="moved"):
        open_tracker(TrackingConfig())
    presto("registry", "relocate")
    assert find_texts(moved / ".presto/mlflow.db", project) == set()


def test_artifacts_that_did_not_move_along_are_named(project: Path, monkeypatch: pytest.MonkeyPatch):
    moved = project.parent / "moved"
    shutil.copytree(project / ".presto", moved / ".presto")
    monkeypatch.chdir(moved)
    assert str(moved / "store/artifacts") in presto("registry", "relocate")


def test_a_store_that_moved_to_a_bucket_is_relocated_by_prefix(project: Path):
    result = relocate(TrackingConfig(), Relocation(str(project / "store"), "s3://bucket/team"))
    assert result.total > 0
    client = open_tracker(TrackingConfig()).client
    (version,) = Catalog(client).list_newest(MODEL, limit=9)
    assert version.uri.startswith("s3://bucket/team/artifacts/")
    assert client.get_registered_model(MODEL).tags["presto.record"] == f"s3://bucket/team/registry/{MODEL}"
    presto("registry", "relocate", "--from", "s3://bucket/team", "--to", "s3://other")
    presto("registry", "relocate", "--from", "s3://bucket/team", "--to", "s3://other")
    (version,) = Catalog(client).list_newest(MODEL, limit=9)
    assert version.uri.startswith("s3://other/artifacts/")


@pytest.mark.services
def test_through_a_server_the_tags_are_rewritten(project: Path, mlflow_server: str):
    config = TrackingConfig(uri=mlflow_server, experiment="relocated")
    tracker = open_tracker(config)
    client, name = tracker.client, "relocated-model"
    client.create_registered_model(name, tags={"presto.record": "s3://old/a"})
    run = client.create_run(tracker.experiment_id, tags={"presto.artifact_uri": "s3://old/b"}).info.run_id
    client.create_model_version(name, source=f"runs:/{run}/x", run_id=run, tags={"presto.artifact_uri": "s3://old/c"})
    relocation = Relocation("s3://old", "s3://new/home")
    counts = relocate(config, relocation, dry_run=True).counts
    assert relocate(config, relocation).counts == counts
    assert sum(counts.values()) == 3
    assert relocate(config, relocation).counts == {}
    assert client.get_registered_model(name).tags["presto.record"] == "s3://new/home/a"
    assert client.get_model_version(name, "1").tags["presto.artifact_uri"] == "s3://new/home/c"
    assert client.get_run(run).data.tags["presto.artifact_uri"] == "s3://new/home/b"


@pytest.mark.parametrize(
    ("text", "new"),
    [
        ("/a b/x", "/c/x"),
        ("/a b", "/c"),
        ("/a bc/x", "/a bc/x"),
        ("file:///a%20b/x", "file:///c/x"),
        ("file:///a b/x", "file:///c/x"),
        ('{"uri": "/a b/x"}', '{"uri": "/c/x"}'),
        ('["/a b", "/a bc"]', '["/c", "/a bc"]'),
        ("see /a b/x", "see /a b/x"),
        ("s3://a b/x", "s3://a b/x"),
    ],
)
def test_only_paths_below_the_old_one_are_rewritten(text: str, new: str):
    relocation = Relocation("/a b", "/c")
    assert relocation.rewrite(text) == new
    assert relocation.rewrite(new) == new


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("/x", "", "--to"),
        ("", "/x", "--from"),
        ("/x", "/x/", "both"),
        ("/x", "/x/y", "lies in"),
        ("/x", "/no/such/folder", "/no/such/folder"),
        ("s3://", "s3://b", "bucket"),
        ("http://h/x", "/x", "http://h/x"),
    ],
)
def test_what_cannot_be_relocated_is_refused(empty: Path, old: str, new: str, named: str):
    with pytest.raises(RegistryError, match=named):
        find_relocation(TrackingConfig(), old, new)
