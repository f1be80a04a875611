"""The registry read from MLflow's database directly: what MLflow itself reads there, or left to MLflow."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pipelines.registry.catalog import Catalog
from pipelines.registry.names import RegistryError
from pipelines.registry.search import search_versions
from pipelines.registry.search_filter import parse_filter
from pipelines.tracking.client import create_client
from pipelines.tracking.sqlite_registry import StoredRegistry, open_for_reading, read_registry
from pipelines.tracking.uri import sqlite_path
from presto_core.config.sections import TrackingConfig
from tests.support.tiny_registry import TinyRegistry

pytestmark = pytest.mark.usefixtures("in_registry_folder")


@pytest.fixture
def database(home: TinyRegistry) -> Path:
    path = sqlite_path(home.tracker.uri)
    assert path is not None
    return path


@pytest.fixture
def served(database: Path) -> Catalog:
    """By MLflow, by the whole path: it keeps stores by URI, and other tests have the same short one."""
    return Catalog(create_client(TrackingConfig(uri=f"sqlite:///{database}"))[0])


@pytest.fixture
def stored(database: Path) -> Catalog:
    registry = read_registry(database)
    assert registry is not None  # the installed MLflow makes databases of the schema that is known
    return Catalog(registry)


def test_mlflow_and_the_direct_read_give_the_same_versions(home: TinyRegistry, database: Path, tmp_path: Path):
    """A version of another tool, a deleted one and an alias are among them."""
    copy = tmp_path / "copy.db"
    shutil.copy(database, copy)
    client, _ = create_client(TrackingConfig(uri=f"sqlite:///{copy}"))
    client.create_registered_model("another-tool")
    client.create_model_version("another-tool", "file:///nowhere")
    client.create_model_version("presto-generator", "file:///nowhere")
    gone = client.create_model_version("presto-generator", "file:///nowhere")
    client.delete_model_version("presto-generator", gone.version)
    ours, theirs = Catalog(read_registry(copy)), Catalog(client)
    assert sorted(ours.models) == sorted(theirs.models)
    assert ours.list_all() == theirs.list_all() != []
    assert ours.list_referenced() == theirs.list_referenced()
    for name in theirs.all_models:
        assert ours.list_newest(name, limit=2) == theirs.list_newest(name, limit=2)
    for artifact in home.made.values():
        assert ours.list_artifact_versions(artifact.id) == theirs.list_artifact_versions(artifact.id)
    assert ours.describe_skipped() == theirs.describe_skipped() != ""


@pytest.mark.parametrize("reference", ["candidate", "candidate-ls", "v1", "presto-teacher"])
def test_a_reference_is_the_same_version(reference: str, served: Catalog, stored: Catalog):
    assert stored.find(reference) == served.find(reference)
    version = stored.find(reference)
    assert stored.find(f"{version.name}@{version.content[:10]}") == version
    # other tests of this registry may have registered the artifact by another name, too
    assert stored.find(version.artifact_id) == served.find(version.artifact_id)


@pytest.mark.parametrize("reference", ["v99", "champoin", "presto-generator@deadbeef", "nothing@v1"])
def test_a_missing_version_is_the_same_error(reference: str, served: Catalog, stored: Catalog):
    messages = []
    for catalog in (stored, served):
        with pytest.raises(RegistryError) as error:
            catalog.find(reference)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("query", ["kind = generator", "method = LS", "name = presto-teacher", "stage ~ distill", ""])
def test_a_search_finds_the_same(query: str, served: Catalog, stored: Catalog):
    clauses = parse_filter(query)
    assert search_versions(stored, clauses) == search_versions(served, clauses)


def test_another_schema_and_a_damaged_database_are_left_to_mlflow(database: Path, tmp_path: Path):
    copy = tmp_path / "other.db"
    shutil.copy(database, copy)
    assert isinstance(open_for_reading(TrackingConfig(uri=f"sqlite:///{copy}")), StoredRegistry)
    with closing(sqlite3.connect(copy)) as changed, changed:
        changed.execute("UPDATE alembic_version SET version_num = 'abc'")
    assert read_registry(copy) is None
    copy.write_bytes(copy.read_bytes()[:5000])
    assert read_registry(copy) is None


def test_a_locked_database_is_left_to_mlflow(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipelines.tracking.database.READ_TIMEOUT_S", 0.05)
    copy = tmp_path / "locked.db"
    shutil.copy(database, copy)
    with closing(sqlite3.connect(copy, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        assert read_registry(copy) is None
    assert read_registry(copy) is not None
