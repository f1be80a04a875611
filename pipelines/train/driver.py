"""The command's view of a run in other processes: rows of metrics, a progress line, warnings, the first error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipelines.cluster.shutdown import SUPERSEDED, StopRequest
from pipelines.console import Bar, console, format_metrics
from pipelines.tracking.client import TrackedRun
from pipelines.train.sweep_hook import Trial
from presto_core.config.sections import HealthConfig
from presto_core.training.health import HealthRange, find_out_of_range

Metrics = dict[str, float]


class MailboxContents(NamedTuple):
    """Messages since the last poll; `stopped` if the first error is an orderly stop."""

    rows: list[tuple[int, Metrics]]
    warnings: list[str]
    error: str
    stopped: bool


@dataclass
class DriverMailbox:
    """Messages between rank 0 and the waiting command; an actor if workers run in other processes."""

    rows: list[tuple[int, Metrics]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    error: str = ""
    stopped: bool = False
    failed_attempt: str = ""
    requested_stop: str = ""
    attempts: list[str] = field(default_factory=list)

    def begin(self, attempt: str) -> None:
        """Start a worker group: messages of earlier groups are ignored from now on, and they may not write.

        A worker of a lost node keeps running for some seconds beside the group that replaced it.
        """
        if attempt not in self.attempts:
            self.attempts.append(attempt)
            if attempt != self.failed_attempt:
                self.error, self.stopped = "", False

    def is_current_attempt(self, attempt: str) -> bool:
        """Whether this is the newest worker group."""
        return self.attempts[-1:] == [attempt]

    def push(self, step: int, metrics: Metrics, attempt: str) -> None:
        if self.is_current_attempt(attempt):
            self.rows.append((step, metrics))

    def warn(self, message: str, attempt: str) -> None:
        if self.is_current_attempt(attempt):
            self.warnings.append(message)

    def fail(self, error: str, attempt: str, *, stopped: bool = False) -> None:
        """Keep the first failure of the current group, its cause; it may arrive before rank 0 calls `begin`."""
        is_newer = attempt not in self.attempts and attempt != self.failed_attempt
        if is_newer or (self.is_current_attempt(attempt) and not self.error):
            self.error, self.stopped, self.failed_attempt = error, stopped, attempt

    def drain(self) -> MailboxContents:
        messages = MailboxContents(self.rows, self.warnings, self.error, self.stopped)
        self.rows, self.warnings = [], []
        return messages

    def request_stop(self, reason: str) -> None:
        self.requested_stop = reason

    def stop_reason(self, attempt: str) -> str:
        return self.requested_stop if self.is_current_attempt(attempt) else SUPERSEDED


@dataclass
class RunMonitor:
    """Shows and records what rank 0 reports, warns of unhealthy signals, and requests a stop if configured.

    Attributes:
        watch: metrics that the progress line shows.
        expected: the ranges signals should stay in.
        replay_rows: logs the rows stored beside checkpoints, up to a step, to MLflow.
        trial: the sweep trial that receives rows too, and may request a stop.
        unhealthy: why the run was asked to stop, if a signal was the reason.
    """

    run: TrackedRun
    bar: Bar
    watch: tuple[str, ...]
    expected: dict[str, HealthRange]
    health: HealthConfig
    stop: StopRequest
    replay_rows: Callable[..., None]
    trial: Trial | None = None
    error: str = ""
    stopped: bool = False
    unhealthy: str = ""
    rows_outside: dict[str, int] = field(default_factory=dict)

    def on_row(self, step: int, metrics: Metrics) -> None:
        """Handle one reported row; the first of an attempt has no metrics and gives the step it starts at."""
        if not metrics and step:
            console.print(f"{self.bar.label}: resumed at step {step} of {self.bar.total}")
            self.replay_rows(upto=step)
        if not metrics:
            self.bar.begin(step)
        else:
            self.bar.update(max(step, self.bar.done), format_metrics(metrics, self.watch))  # a validation may be late
            self.run.log(step, metrics)
            self._check_health(step, metrics)
            if reason := self.trial.on_row(step, metrics) if self.trial else "":
                self.stop.request(reason)

    def warn(self, message: str) -> None:
        console.print(f"{self.bar.label}: {message}", style="yellow", markup=False)

    def _check_health(self, step: int, metrics: Metrics) -> None:
        """Warn once per signal that stays outside its range; if it does for twice as long, stop if configured."""
        violations = find_out_of_range(metrics, self.expected)
        not_reported = {name: rows for name, rows in self.rows_outside.items() if name not in metrics}
        self.rows_outside = not_reported | {name: self.rows_outside.get(name, 0) + 1 for name in violations}
        for name, message in violations.items():
            if self.rows_outside[name] == self.health.patience:
                self.warn(f"step {step}: {message}")
            if self.rows_outside[name] == 2 * self.health.patience and self.health.stop:
                duration = f"for {self.rows_outside[name]} rows up to step {step}"
                self.unhealthy = f"{message}, {duration}; fix the settings, or continue anyway with health.stop=false"
                self.stop.request(self.unhealthy)

    def poll(self, mailbox: Any) -> None:
        """Exchange messages with a `DriverMailbox` actor."""
        import ray

        messages = MailboxContents(*ray.get(mailbox.drain.remote()))
        self.error, self.stopped = messages.error, messages.stopped
        for message in messages.warnings:
            self.warn(message)
        for step, metrics in messages.rows:
            self.on_row(step, metrics)
        if self.stop.reason:
            ray.get(mailbox.request_stop.remote(self.stop.reason))
