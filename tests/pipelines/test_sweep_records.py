"""The records of a sweep: stored, resumed, and what Ray Tune's callback and MLflow keep of how a trial ended."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.storage.filesystem import open_folder
from pipelines.sweep.callback import SweepCallback
from pipelines.sweep.plan import SweepPlan, make_plan
from pipelines.sweep.store import FAILED, FINISHED, PRUNED, RUNNING, SweepStore, TrialRecord, sweep_folder
from pipelines.tracking.client import open_tracker
from pipelines.tracking.tags import RUN_ID
from presto_core.artifacts.store import StoreError
from presto_core.config.sections import TrackingConfig
from tests.pipelines.test_sweep_trials import DECAY, make_row


@pytest.fixture
def plan() -> SweepPlan:
    domains = f'sweep.domains={{"{DECAY}": [0.1, 0.2]}}'
    return make_plan(["demo", "steps.generator_updates=4", "validation.every=1", domains])


# --- records


@pytest.fixture
def store(empty: Path) -> SweepStore:
    return SweepStore(sweep_folder(open_folder(str(empty / "store")), "s"))


def test_records_are_read_as_they_were_written(store: SweepStore):
    assert store.load_all() == {}
    record = TrialRecord("a", {DECAY: 0.1}, state=PRUNED, reason="x", steps=3)
    record.add_row(make_row(2, 0.5))
    record.add_row(make_row(1, 0.7))
    store.save(record)
    assert store.load_all() == {"a": record}
    assert (record.last_update, record.last_value("fd"), record.is_done) == (2, 0.5, True)
    assert record.rows[1] == {"fd": 0.7, "seconds": 0.5}


def test_sessions_add_up_and_a_sweep_that_is_not_there_is_refused(store: SweepStore):
    assert store.add_sessions([{"seconds": 1.0}]) == [{"seconds": 1.0}]
    assert store.add_sessions([{"seconds": 2.0}]) == [{"seconds": 1.0}, {"seconds": 2.0}]
    with pytest.raises(StoreError, match="sweeps/s"):
        store.read_definition()
    store.write_definition({"metrics": ["fd"]})
    assert store.read_definition() == {"metrics": ["fd"]}


# --- the callback


@dataclass
class TuneTrial:
    """A trial as Ray Tune hands it to callbacks."""

    config: dict[str, Any]
    trial_id: str = "t"
    last_result: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    def get_error(self) -> str:
        return self.error


@pytest.fixture
def callback(plan: SweepPlan, store: SweepStore, workdir: Path) -> SweepCallback:
    return SweepCallback(plan, store, store.load_all(), open_tracker(TrackingConfig()), "parent")


def start(callback: SweepCallback) -> tuple[TuneTrial, TrialRecord]:
    proposal = callback.plan.make_proposal({DECAY: 0.1})
    return TuneTrial(callback.start_trial(proposal)), callback.known[proposal.run_id]


def test_a_trial_that_starts_again_keeps_its_rows_and_hears_which_ones(callback: SweepCallback, store: SweepStore):
    trial, record = start(callback)
    assert trial.config == {"run_id": record.run_id, "settings": {DECAY: 0.1}, "known": [], "parent": "parent"}
    callback.on_trial_result(1, [], trial, {"row": make_row(2, 0.5)})
    record.state = PRUNED
    again, same = start(callback)
    assert (again.config["known"], same.state) == ([2], RUNNING)
    assert store.load_all() == {record.run_id: record}
    assert record.full_steps == callback.plan.make_config({DECAY: 0.1}).total_steps


@pytest.mark.parametrize(
    ("result", "state"),
    [
        ({"artifact": "a"}, FINISHED),
        ({"failed": "too large"}, FAILED),
        ({"interrupted": "SIGTERM"}, RUNNING),  # it goes on with the sweep
        ({}, PRUNED),
    ],
)
def test_the_last_report_decides_how_a_trial_ended(
    callback: SweepCallback, store: SweepStore, result: dict[str, Any], state: str
):
    trial, record = start(callback)
    trial.last_result = result | {"costs": {"steps": 8}}
    callback.on_trial_result(1, [], trial, trial.last_result)
    callback.on_trial_complete(1, [], trial)
    assert record.state == state
    assert record.steps == 8 + (state == PRUNED)  # one more, in which it notices
    assert asdict(store.load_all()[record.run_id]) == asdict(record)


@pytest.mark.parametrize(("error", "reason"), [("Traceback\n  KeyError: 'x'\n\n", "KeyError: 'x'"), ("", "died")])
def test_an_error_of_the_process_is_a_failure_with_its_last_line(callback: SweepCallback, error: str, reason: str):
    trial, record = start(callback)
    trial.error = error
    callback.on_trial_error(1, [], trial)
    assert (record.state, record.reason.endswith(reason)) == (FAILED, True)


def test_seconds_add_up_over_reports_processes_and_commands(callback: SweepCallback):
    trial, record = start(callback)
    for wall_s in (5.0, 8.0, 2.0, 3.0):  # the third is of a new process
        callback.on_trial_result(1, [], trial, {"costs": {"wall_s": wall_s, "trained_s": wall_s / 2, "steps": 4}})
    assert (record.wall_s, record.trained_s, record.steps) == (11.0, 5.5, 4)
    later = SweepCallback(callback.plan, callback.records, callback.records.load_all(), callback.tracker, "parent")
    trial, record = start(later)
    later.on_trial_result(1, [], trial, {"costs": {"wall_s": 1.0}})
    assert record.wall_s == 12.0


@pytest.mark.parametrize(
    ("result", "state", "status"), [({"artifact": "a"}, FINISHED, "FINISHED"), ({}, PRUNED, "KILLED")]
)
def test_mlflow_records_how_a_trial_ended(callback: SweepCallback, result: dict[str, Any], state: str, status: str):
    tracker = callback.tracker
    trial, record = start(callback)
    mlflow_id = tracker.client.create_run(tracker.experiment_id, tags={RUN_ID: record.run_id}).info.run_id
    callback.on_trial_result(1, [], trial, result)
    callback.on_trial_complete(1, [], trial)
    run = tracker.client.get_run(mlflow_id)
    assert run.info.status == status
    assert (run.data.tags["presto.trial"], run.data.tags["mlflow.parentRunId"]) == (state, "parent")
    assert run.data.tags["presto.sweep"] == callback.plan.id


def test_a_tracker_that_fails_does_not_end_the_sweep(callback: SweepCallback):
    callback.tracker = replace(callback.tracker, client=None)
    trial, record = start(callback)
    callback.on_trial_complete(1, [], trial)
    assert (record.state, callback.num_done) == (PRUNED, 1)
