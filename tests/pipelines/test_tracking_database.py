"""MLflow's database is made whole or not at all; a locked one is waited for in silence; a half-made one is named."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from pipelines.tracking import run as tracking_run
from pipelines.tracking.client import Tracker, create_client, open_tracker
from pipelines.tracking.run import TrackedRun, TrackingError, with_retries
from presto_core.artifacts.manifest import Artifact
from presto_core.config.schema import TeacherStage
from presto_core.config.sections import TrackingConfig
from tests.support.processes import PATIENCE_S

# Forks commands, which spares the imports: some are killed while they make the database, then two make it at once.
MAKE_AND_KILL = """
import glob, os, signal, time, mlflow
from pipelines.tracking.client import *
from pipelines.tracking.database import LEFTOVER_S
def begin():
    if pid := os.fork():
        return pid
    open_tracker(TrackingConfig())
    os._exit(0)
seen = set()
for moment in (0.0, 0.1, 0.3):
    pid = begin()
    while not (folders := [f for f in glob.glob(".presto/.mlflow.db.partial-*") if f not in seen]):
        time.sleep(0.01)
    seen.update(folders)
    time.sleep(moment)
    assert not os.path.exists(".presto/mlflow.db")
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    past = time.time() - 2 * LEFTOVER_S
    os.utime(folders[0], (past, past))
assert [os.waitpid(pid, 0)[1] for pid in [begin(), begin()]] == [0, 0]
"""


@pytest.fixture
def tracker(workdir: Path) -> Tracker:
    return open_tracker(TrackingConfig())


def test_a_command_that_is_killed_while_it_makes_the_database_leaves_none_or_a_whole_one(empty: Path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", MAKE_AND_KILL], env=environment, timeout=PATIENCE_S, check=True)
    assert [path.name for path in (empty / ".presto").iterdir() if "mlflow.db" in path.name] == ["mlflow.db"]
    assert open_tracker(TrackingConfig()).find_run("a" * 16) is None


def make_half(path: Path, whole: Path, *, tables: int) -> None:
    """Leave what MLflow leaves that was killed: the first tables, and nothing in them."""
    with closing(sqlite3.connect(whole)) as source, closing(sqlite3.connect(path)) as target:
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        names = ["experiments", "runs", "metrics", "params", "tags"]
        made = dict(source.execute(query))
        for name in [*names, *sorted(set(made) - set(names))][:tables]:
            target.execute(made[name])
        target.commit()


@pytest.mark.parametrize("tables", [1, 5, 20])
def test_a_database_that_was_left_half_made_is_named_with_its_fix(empty: Path, mlflow_database: Path, tables: int):
    Path(".presto").mkdir()
    path = Path(".presto/mlflow.db").absolute()
    make_half(path, mlflow_database, tables=tables)
    with pytest.raises(TrackingError) as refused:
        open_tracker(TrackingConfig())
    fix = str(refused.value).rpartition(": ")[2]
    subprocess.run(shlex.split(fix), check=True)
    assert not path.exists()


def test_an_empty_file_becomes_the_database(empty: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch):
    Path(".presto").mkdir()
    Path(".presto/mlflow.db").touch()
    open_tracker(TrackingConfig()).client.search_experiments()
    assert Path(".presto/mlflow.db").read_bytes()[:6] == b"SQLite"


# --- locked by another process


def lock(path: str, seconds: float) -> threading.Thread:
    """Keep a database locked for writers and readers, from a connection of its own."""
    locked = threading.Event()

    def hold() -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("BEGIN EXCLUSIVE")
            locked.set()
            time.sleep(seconds)
            database.execute("ROLLBACK")

    thread = threading.Thread(target=hold)
    thread.start()
    assert locked.wait(PATIENCE_S)
    return thread


def test_a_locked_database_delays_a_run_and_loses_nothing(
    workdir: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """MLflow itself waits 20 s before it reports a lock; less here, so that there are reports to be silent about."""
    monkeypatch.setattr(tracking_run, "PAUSE_S", 0.05)
    monkeypatch.setattr(tracking_run, "FLUSH_EVERY_S", 0.01)
    shorten_busy_timeout(tracker)
    run = TrackedRun(tracker.client, tracker.client.create_run(tracker.experiment_id).info.run_id)
    run.log(1, {"loss": 1.0})
    run.flush_all()
    thread = lock(".presto/mlflow.db", 1.5)
    with caplog.at_level(logging.WARNING):
        for step in range(2, 50):
            run.log(step, {"loss": 1.0 / step})
            time.sleep(0.02)
        run.finish()
    thread.join()
    history = tracker.client.get_metric_history(run.mlflow_id, "loss")
    assert [point.step for point in history] == list(range(1, 50))
    assert tracker.client.get_run(run.mlflow_id).info.status == "FINISHED"
    assert len(caplog.records) == 1  # said once, for however many attempts
    assert "\n" not in caplog.records[0].getMessage()
    assert caplog.records[0].exc_info is None


def shorten_busy_timeout(tracker: Tracker) -> None:
    from sqlalchemy import event

    engine = tracker.client._tracking_client.store.engine

    def shorten(conn: object, cursor: object, statement: str, *rest: object) -> tuple[str, object]:
        return statement.replace("busy_timeout = 20000", "busy_timeout = 100"), rest[0]

    event.listen(engine, "before_cursor_execute", shorten, retval=True)


def test_a_database_that_is_locked_at_the_start_is_waited_for(workdir: Path, tracker: Tracker):
    thread = lock(".presto/mlflow.db", 3.0)
    assert open_tracker(TrackingConfig()).experiment_id == tracker.experiment_id
    thread.join()


def test_waiting_is_announced_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

    monkeypatch.setattr("pipelines.tracking.retry.wait_exponential", lambda **named: lambda state: 0.0)
    attempts = []

    def fail_six_times() -> int:
        attempts.append(1)
        if len(attempts) <= 6:
            raise MlflowException("database is locked\n[SQL: INSERT INTO secrets]", TEMPORARILY_UNAVAILABLE)
        return len(attempts)

    assert with_retries(fail_six_times) == 7
    shown = capsys.readouterr().err
    assert shown.count("database is locked") == 1
    assert "INSERT" not in shown


def test_runs_that_record_the_same_new_data_set_at_once_all_start(tracker: Tracker):
    config = TrackingConfig()
    for round_ in range(5):
        dataset = Artifact("dataset", f"{round_:016x}", f"/data/{round_}", {})
        barrier = threading.Barrier(4)
        with ThreadPoolExecutor(4) as pool:
            starts = [
                pool.submit(_start_run, config, f"{round_}{worker}".rjust(16, "0"), dataset, barrier)
                for worker in range(4)
            ]
            run_ids = [start.result() for start in starts]
        for run_id in run_ids:
            mlflow_id = tracker.find_run(run_id)
            assert mlflow_id
            run = tracker.client.get_run(mlflow_id)
            assert [entry.dataset.digest for entry in run.inputs.dataset_inputs] == [dataset.id]
            assert run.data.params


def _start_run(config: TrackingConfig, run_id: str, dataset: Artifact, barrier: threading.Barrier) -> str:
    tracker, stage = open_tracker(config), TeacherStage()
    barrier.wait()
    with tracker.run("train-teacher", stage, run_id, {"dataset": dataset}):
        return run_id


def test_a_row_that_stays_taken_is_an_error_and_not_a_wait(monkeypatch: pytest.MonkeyPatch):
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    monkeypatch.setattr("pipelines.tracking.retry.wait_exponential", lambda **named: lambda state: 0.0)
    attempts = []

    def fail() -> None:
        attempts.append(1)
        raise MlflowException("UNIQUE constraint failed: datasets.digest", BAD_REQUEST)

    with pytest.raises(MlflowException, match="UNIQUE"):
        with_retries(fail)
    assert len(attempts) == 5


# --- deleted


def test_the_fix_of_a_deleted_experiment_works_as_it_is_printed(
    workdir: Path, tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("with space")
    shutil.copytree(".presto", folder / ".presto")
    uri = f"sqlite:///{folder}/.presto/mlflow.db"
    made = open_tracker(TrackingConfig(uri=uri))
    made.client.delete_experiment(made.experiment_id)
    with pytest.raises(TrackingError) as refused:
        open_tracker(TrackingConfig(uri=uri))
    printed = str(refused.value).rpartition("restore it: ")[2]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(printed, shell=True, check=True, cwd=elsewhere, env=os.environ | {"PATH": path})
    assert open_tracker(TrackingConfig(uri=uri)).experiment_id == made.experiment_id
    assert list(elsewhere.iterdir()) == []


def test_the_files_of_a_project_lie_beside_its_database(empty: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch):
    _, uri = create_client(TrackingConfig())
    other = empty / "elsewhere"
    other.mkdir()
    monkeypatch.chdir(other)
    tracker = open_tracker(TrackingConfig(uri=uri))
    location = tracker.client.get_experiment(tracker.experiment_id).artifact_location
    assert location == (workdir / ".presto/mlartifacts").as_uri()
