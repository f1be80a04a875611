"""Every tracking URI that cannot be MLflow's is refused before any work, with its value and what to write instead."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from infra.cli.dispatch import dispatch
from infra.jobs.command import StageCommand
from pipelines.tracking.client import check_tracking, open_tracker
from pipelines.tracking.uri import TrackingUriError
from presto_core.config.loader import ConfigError, load_config
from presto_core.config.schema import IngestStage
from presto_core.config.sections import TrackingConfig

REFUSED = {
    "./mlruns": "sqlite:///./mlruns/mlflow.db",
    "mlruns": "sqlite:///mlruns/mlflow.db",
    "file:///data/mlruns": "sqlite:////data/mlruns/mlflow.db",
    "runs.db": "sqlite:///runs.db",
    "sqlite:runs.db": "sqlite:///runs.db",
    "sqlite://runs.db": "sqlite:///runs.db",
    "sqlite:///": "sqlite:///mlflow.db",
    "sqlite:///:memory:": "sqlite:///mlflow.db",
    r"C:\x": "http",
    "foo://host": "http",
    "http://": "http://HOST",
    "http://:5000": "http://HOST",
    "https://host:port": "http://HOST",
    "http://my host:5000": "http://HOST",
    "localhost:5000": "http://localhost:5000",
    "postgresql+nosuchdriver://h/db": "pip install nosuchdriver",
    "sqlite:///no/such/dir/x.db": "mkdir -p",
}
ACCEPTED = ["", "sqlite:///x.db", "sqlite+pysqlite:///x.db", "http://h", "https://u:p@h:5000/prefix", "databricks"]


@pytest.mark.parametrize(("uri", "fix"), REFUSED.items())
def test_what_is_no_tracking_uri_is_refused_with_its_fix(empty: Path, uri: str, fix: str):
    with pytest.raises(TrackingUriError) as refused:
        open_tracker(TrackingConfig(uri=uri))
    message = str(refused.value)
    assert repr(uri) in message
    assert fix in message
    assert "tracking.uri" in message
    assert isinstance(refused.value, ConfigError)  # exit status 2
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize("uri", ACCEPTED)
def test_what_may_be_one_is_not_refused_by_its_form(empty: Path, uri: str):
    check_tracking(TrackingConfig(uri=uri))


def test_the_variable_is_named_where_the_value_comes_from_it(empty: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(TrackingUriError, match="MLFLOW_TRACKING_URI"):
        check_tracking(TrackingConfig())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", " ")
    check_tracking(TrackingConfig())


def test_a_password_is_not_shown(empty: Path):
    with pytest.raises(TrackingUriError) as refused:
        check_tracking(TrackingConfig(uri="foo://me:hunter22@host"))
    assert "hunter22" not in str(refused.value)


def test_a_driver_that_is_missing_is_named(empty: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipelines.tracking.uri.find_spec", lambda name: None)
    with pytest.raises(TrackingUriError, match="psycopg2-binary"):
        check_tracking(TrackingConfig(uri="postgresql://u@h/db"))


@pytest.mark.parametrize("name", ["", "   ", "x" * 501])
def test_an_experiment_needs_a_name(empty: Path, name: str):
    with pytest.raises(TrackingUriError, match=r"tracking\.experiment"):
        check_tracking(TrackingConfig(experiment=name))


def test_a_file_that_is_no_database_of_mlflow_is_refused_and_left_as_it_is(empty: Path):
    Path("folder.db").mkdir()
    Path("text.db").write_text("not a database")
    with closing(sqlite3.connect("other.db")) as database:
        database.execute("CREATE TABLE songs (title TEXT)")
        database.commit()
    before = Path("other.db").read_bytes()
    for name, named in {"folder.db": "folder", "text.db": "no SQLite", "other.db": "songs"}.items():
        with pytest.raises(TrackingUriError, match=named):
            open_tracker(TrackingConfig(uri=f"sqlite:///{name}"))
    assert Path("other.db").read_bytes() == before


def test_a_stage_is_refused_before_its_work(empty: Path):
    config = load_config(IngestStage, None, {"tracking.uri": "foo://", "ingest.source": str(empty)})
    command = StageCommand("ingest", config, execute=lambda: pytest.fail("it began"))
    with pytest.raises(TrackingUriError, match="foo"):
        dispatch(command, on="local", dry_run=False)
