"""What the command keeps of its workers' messages, and when it warns, stops a run, or asks a sweep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from pipelines.cluster.shutdown import SUPERSEDED, StopRequest
from pipelines.console import Bar
from pipelines.tracking.client import TrackedRun
from pipelines.train.driver import DriverMailbox, RunMonitor
from pipelines.train.sweep_hook import Trial
from presto_core.config.sections import HealthConfig
from presto_core.training.health import HealthRange

LOSS = {"loss": HealthRange(0.0, 1.0, "the loss explodes")}
GOOD, BAD = {"loss": 0.5}, {"loss": 7.0}


# --- the mailbox


def test_messages_of_older_worker_groups_are_ignored():
    mailbox = DriverMailbox()
    mailbox.begin("a")
    mailbox.push(1, GOOD, "a")
    mailbox.warn("from a", "a")
    mailbox.begin("b")
    mailbox.push(2, BAD, "a")
    mailbox.warn("late", "a")
    mailbox.push(1, GOOD, "b")
    assert mailbox.drain()[:2] == ([(1, GOOD), (1, GOOD)], ["from a"])
    assert mailbox.drain()[:2] == ([], [])
    assert [mailbox.is_current_attempt(attempt) for attempt in ("a", "b", "c")] == [False, True, False]


def test_a_group_that_begins_twice_begins_once():
    mailbox = DriverMailbox()
    for attempt in ("a", "b", "a"):
        mailbox.begin(attempt)
    assert mailbox.attempts == ["a", "b"]


def test_the_first_error_of_a_group_wins_and_stays():
    mailbox = DriverMailbox()
    mailbox.begin("a")
    mailbox.fail("cause", "a")
    mailbox.fail("effect", "a", stopped=True)
    for _ in range(2):
        assert mailbox.drain()[2:] == ("cause", False)


def test_a_restart_forgets_the_error_of_the_group_before():
    mailbox = DriverMailbox()
    mailbox.begin("a")
    mailbox.fail("lost a node", "a", stopped=True)
    mailbox.begin("b")
    mailbox.fail("late", "a")
    assert mailbox.drain()[2:] == ("", False)


@pytest.mark.parametrize("earlier", [None, "lost a node"])
def test_an_error_that_comes_before_its_group_begins_is_kept(earlier: str | None):
    """Another rank may fail while rank 0 still starts."""
    mailbox = DriverMailbox()
    if earlier:
        mailbox.begin("a")
        mailbox.fail(earlier, "a")
    mailbox.fail("cause", "b")
    mailbox.fail("second rank", "b")
    mailbox.fail("late", "a" if earlier else "b")
    mailbox.begin("b")
    mailbox.fail("effect", "b")
    assert mailbox.drain().error == "cause"


def test_a_request_to_stop_reaches_the_current_group_and_others_are_superseded():
    mailbox = DriverMailbox()
    mailbox.begin("a")
    assert mailbox.stop_reason("a") == ""
    mailbox.request_stop("enough")
    mailbox.begin("b")
    assert (mailbox.stop_reason("b"), mailbox.stop_reason("a")) == ("enough", SUPERSEDED)


# --- the monitor


@dataclass
class Recorder:
    """Stands for the run in MLflow, and for the rows beside its checkpoints."""

    rows: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    replayed: list[int] = field(default_factory=list)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.rows.append((step, metrics))

    def replay(self, *, upto: int) -> None:
        self.replayed.append(upto)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def watch(recorder: Recorder) -> Callable[..., RunMonitor]:
    def make(trial: Trial | None = None, **health: Any) -> RunMonitor:
        run, bar = cast(TrackedRun, recorder), Bar("teacher", total=100)
        settings = HealthConfig(**{"patience": 2} | health)
        return RunMonitor(run, bar, ("loss",), LOSS, settings, StopRequest(), recorder.replay, trial)

    return make


def count_warnings(capsys: pytest.CaptureFixture[str]) -> int:
    return capsys.readouterr().err.count(LOSS["loss"].meaning)


def test_rows_are_recorded_and_the_bar_never_goes_back(watch: Callable[..., RunMonitor], recorder: Recorder):
    monitor = watch()
    for step in (4, 8, 6):  # a validation arrives late
        monitor.on_row(step, GOOD)
    assert recorder.rows == [(4, GOOD), (8, GOOD), (6, GOOD)]
    assert monitor.bar.done == 8


def test_a_row_without_metrics_means_a_start_and_replays_what_was_stored(
    watch: Callable[..., RunMonitor], recorder: Recorder
):
    monitor = watch()
    monitor.on_row(0, {})
    assert recorder.replayed == []
    monitor.on_row(12, {})
    assert (recorder.rows, recorder.replayed, monitor.bar.done) == ([], [12], 12)


def test_a_signal_outside_its_range_warns_once_after_patience(
    watch: Callable[..., RunMonitor], capsys: pytest.CaptureFixture[str]
):
    monitor, warned = watch(), []
    for step in range(1, 8):
        monitor.on_row(step, BAD)
        warned.append(count_warnings(capsys))
    assert warned == [0, 1, 0, 0, 0, 0, 0]
    assert (monitor.unhealthy, monitor.stop.reason) == ("", "")  # health.stop is off


def test_a_signal_that_recovers_starts_again_from_none(
    watch: Callable[..., RunMonitor], capsys: pytest.CaptureFixture[str]
):
    monitor = watch(stop=True)
    for step, row in enumerate([BAD, GOOD, BAD, GOOD, BAD], 1):
        monitor.on_row(step, row)
    assert (count_warnings(capsys), monitor.stop.reason) == (0, "")


def test_rows_without_the_signal_do_not_count_and_do_not_reset(
    watch: Callable[..., RunMonitor], capsys: pytest.CaptureFixture[str]
):
    monitor = watch()
    for step, row in enumerate([BAD, {"other": 1.0}, BAD], 1):
        monitor.on_row(step, row)
    assert count_warnings(capsys) == 1


def test_twice_the_patience_stops_the_run_where_that_is_wanted(watch: Callable[..., RunMonitor]):
    monitor, stopped_at = watch(stop=True), []
    for step in range(1, 7):
        monitor.on_row(step, BAD)
        stopped_at += [step] if monitor.stop.reason else []
    assert stopped_at[0] == 4
    assert monitor.unhealthy == monitor.stop.reason
    assert {"loss", "health.stop=false"} <= {word.strip(",;") for word in monitor.unhealthy.split()}


def test_a_sweep_hears_every_row_and_its_first_reason_to_stop_counts(watch: Callable[..., RunMonitor]):
    steps: list[int] = []

    def answer(step: int, metrics: dict[str, float]) -> str:
        steps.append(step)
        return f"lost at {step}" if step > 1 else ""

    monitor = watch(Trial(answer))
    for step in (0, 1, 2, 3):
        monitor.on_row(step, GOOD if step else {})
    assert steps == [1, 2, 3]
    assert monitor.stop.reason == "lost at 2"
