"""A trial of a sweep: what it reports, once each, and how Ray Tune and the sweep learn of its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray.exceptions
import ray.tune

from pipelines.cluster.session import ClusterError
from pipelines.cluster.shutdown import StoppedError
from pipelines.stages.table import STAGES, Stage
from pipelines.sweep.plan import SweepPlan, make_plan
from pipelines.sweep.trial import STOPPED_EARLY, TrialReporter, run_trial
from pipelines.sweep.tune import _extract_user_error
from pipelines.train.validation import PREFIX, UPDATE
from presto_core.artifacts.store import StoreError
from presto_core.config.schema import StepsStage
from presto_core.errors import UserError

DECAY = "steps.ema_decay"
UPDATES = 4


def make_row(update: int, fd: float) -> dict[str, float]:
    return {UPDATE: float(update), f"{PREFIX}fd": fd, f"{PREFIX}seconds": 0.5}


@pytest.fixture
def plan() -> SweepPlan:
    domains = f'sweep.domains={{"{DECAY}": [0.1, 0.2]}}'
    return make_plan(["demo", f"steps.generator_updates={UPDATES}", "validation.every=1", domains])


# --- a trial


@dataclass
class Inbox:
    """Ray Tune's end of a trial: keeps reports, and ends the trial after `patience` of them."""

    patience: int = 99
    reports: list[dict[str, Any]] = field(default_factory=list)

    def report(self, result: dict[str, Any]) -> None:
        self.reports.append(result)
        if len(self.reports) == self.patience:
            raise SystemExit

    def read(self, key: str) -> list[Any]:
        return [result[key] for result in self.reports if key in result]


def make_reporter(inbox: Inbox, *known: int, log_every: int = 10) -> TrialReporter:
    return TrialReporter(inbox.report, set(known), UPDATES, log_every)


def test_every_validation_is_reported_once_and_the_last_one_with_the_result():
    inbox = Inbox()
    reporter = make_reporter(inbox, 1)
    for step, update in ((10, 1), (20, 2), (20, 2), (40, UPDATES)):
        assert reporter.on_row(step, make_row(update, fd=update / 10)) == ""
    assert inbox.read("update") == [2]
    reporter.finish(artifact="a")
    assert inbox.read("fd") == [0.2, 0.4]
    assert inbox.reports[-1]["artifact"] == "a"
    assert inbox.reports[-1]["row"] == make_row(UPDATES, 0.4)


def test_a_trial_that_is_ended_stops_in_order_and_reports_no_more():
    inbox = Inbox(patience=1)
    reporter = make_reporter(inbox)
    assert reporter.on_row(10, make_row(1, 0.1)) == STOPPED_EARLY
    assert reporter.on_row(20, make_row(2, 0.1)) == STOPPED_EARLY
    reporter.finish(failed="x")
    assert (reporter.stopped, len(inbox.reports)) == (True, 1)


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [
        ([(10, 0.1), (20, 0.2)], 10 * 0.1 + 10 * 0.2),
        ([(10, 0.1), (15, 0.2)], 10 * 0.1 + 5 * 0.2),
        ([(60, 0.1)], 10 * 0.1),  # resumed: of the steps before, nothing is known
        ([(4, 0.1)], 4 * 0.1),
    ],
)
def test_time_in_steps_is_the_sum_over_their_rows(rows: list[tuple[int, float]], seconds: float):
    reporter = make_reporter(Inbox())
    for step, each in rows:
        reporter.on_row(step, {"step_seconds": each})
    assert reporter.costs["trained_s"] == pytest.approx(seconds)
    assert reporter.costs["steps"] == rows[-1][0]


@dataclass(frozen=True)
class EndingStage(Stage):
    """A stage that trains for one validation and then ends with an error."""

    error: BaseException | None = None

    def run(self, config: Any, *args: Any) -> Any:
        assert args[1].tags == {"mlflow.parentRunId": "p"}
        args[1].on_row(10, make_row(1, 0.1))
        assert self.error
        raise self.error


@pytest.mark.parametrize(
    ("error", "key", "value"),
    [
        (StoppedError("SIGTERM"), "interrupted", "SIGTERM"),
        (UserError("too large"), "failed", "too large"),
        (ZeroDivisionError("by 0"), "failed", "ZeroDivisionError: by 0"),
    ],
)
def test_how_a_trial_ended_reaches_the_sweep(
    plan: SweepPlan, monkeypatch: pytest.MonkeyPatch, empty: Path, error: Exception, key: str, value: str
):
    inbox = Inbox()
    monkeypatch.setattr(ray.tune, "report", inbox.report)
    monkeypatch.setitem(STAGES, StepsStage.NAME, EndingStage(StepsStage, error=error))
    run_trial({"settings": {}, "known": [], "parent": "p"}, plan=plan)
    assert inbox.read(key) == [value]
    assert inbox.read("update") == [1]


def test_a_trial_that_its_sweep_stopped_leaves_its_process_in_order(
    plan: SweepPlan, monkeypatch: pytest.MonkeyPatch, empty: Path
):
    inbox = Inbox(patience=1)
    monkeypatch.setattr(ray.tune, "report", inbox.report)
    monkeypatch.setitem(STAGES, StepsStage.NAME, EndingStage(StepsStage, error=StoppedError(STOPPED_EARLY)))
    with pytest.raises(SystemExit) as ended:
        run_trial({"settings": {DECAY: 0.1}, "known": [], "parent": "p"}, plan=plan)
    assert ended.value.code == 0
    assert inbox.read("interrupted") == inbox.read("failed") == []


# --- errors of Ray Tune


def test_the_error_of_the_user_is_found_inside_those_of_ray():
    cause = StoreError("full")
    outer, middle = RuntimeError("outer"), RuntimeError("middle")
    outer.__cause__, middle.__context__ = middle, cause
    assert _extract_user_error(outer) is cause
    assert isinstance(_extract_user_error(ray.exceptions.RaySystemError("gone")), ClusterError)
    bug = ZeroDivisionError()
    assert _extract_user_error(bug) is bug
