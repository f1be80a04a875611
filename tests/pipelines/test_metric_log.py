"""Rows beside checkpoints: stored per checkpoint, read in order, replayed to MLflow without a repeat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.storage.filesystem import open_folder
from pipelines.tracking.client import open_tracker
from pipelines.tracking.metric_log import METRICS_FOLDER, MetricLog, Row, read_rows, replay_rows
from pipelines.tracking.run import TrackedRun
from presto_core.artifacts.folder import Folder
from presto_core.config.sections import TrackingConfig


@pytest.fixture
def scratch(empty: Path) -> Folder:
    return open_folder(str(empty / "scratch"))


def make_rows(*steps: int) -> list[Row]:
    return [(step, {"loss": 1 / step}) for step in steps]


def store_rows(scratch: Folder, checkpoint: int, *steps: int) -> None:
    log = MetricLog(scratch.child(METRICS_FOLDER))
    for step, metrics in make_rows(*steps):
        log.add(step, metrics)
    log.write(checkpoint, log.pop_rows())


def list_names(scratch: Folder) -> list[str]:
    return [info.base_name for info in scratch.child(METRICS_FOLDER).list_files(missing_ok=True)]


def test_rows_are_taken_once():
    log = MetricLog(open_folder("unused"))
    log.add(1, {"loss": 1.0})
    assert (log.pop_rows(), log.pop_rows()) == ([(1, {"loss": 1.0})], [])


def test_rows_are_read_in_the_order_of_their_checkpoints(scratch: Folder):
    assert list(read_rows(scratch)) == []
    store_rows(scratch, 1000, 600, 900)
    store_rows(scratch, 500, 100, 400)
    assert list(read_rows(scratch)) == make_rows(100, 400, 600, 900)


def test_no_rows_make_no_file_and_a_repeated_write_changes_nothing(scratch: Folder):
    store_rows(scratch, 500)
    assert list_names(scratch) == []
    for _ in range(2):
        store_rows(scratch, 500, 100)
    assert (len(list_names(scratch)), list(read_rows(scratch))) == (1, make_rows(100))


def test_files_that_are_not_complete_are_skipped(scratch: Folder):
    store_rows(scratch, 500, 100)
    (Path(scratch.uri) / METRICS_FOLDER / "rows-000001000.json.partial").write_text(json.dumps(make_rows(600))[:9])
    assert list(read_rows(scratch)) == make_rows(100)


@pytest.mark.parametrize(("upto", "steps"), [(300, [100, 300]), (None, [100, 300, 400])])
def test_mlflow_gets_the_rows_that_it_missed_up_to_a_step(
    scratch: Folder, workdir: Path, upto: int | None, steps: list[int]
):
    tracker = open_tracker(TrackingConfig())
    run = TrackedRun(tracker.client, tracker.client.create_run(tracker.experiment_id).info.run_id)
    run.log(100, {"loss": 1 / 100})
    run.flush_all()
    store_rows(scratch, 500, 100, 300, 400)
    replay_rows(scratch, run, **({} if upto is None else {"upto": upto}))
    assert run.read_history("loss") == [(step, 1 / step) for step in steps]
    run.finish()
