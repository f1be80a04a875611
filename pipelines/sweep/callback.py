"""Ray Tune callback of a sweep: keeps the records, records in MLflow how trials ended, and shows progress."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

from ray.tune import Callback

from pipelines.console import Bar, console
from pipelines.sweep.plan import Proposal, SweepPlan
from pipelines.sweep.store import FAILED, FINISHED, PRUNED, RUNNING, SweepStore, TrialRecord
from pipelines.tracking.client import Tracker

STATUS = {FINISHED: "FINISHED", PRUNED: "KILLED", FAILED: "FAILED"}


class SweepCallback(Callback):  # type: ignore[misc]
    """Ray Tune's callback.

    Attributes:
        known: records by run_id, including those of earlier attempts; searchers look values up here.
        parent_id: MLflow id of the sweep's own run.
        bar: the progress bar.
    """

    def __init__(
        self, plan: SweepPlan, store: SweepStore, records: dict[str, TrialRecord], tracker: Tracker, parent_id: str
    ) -> None:
        self.plan, self.records, self.known = plan, store, records
        self.tracker, self.parent_id = tracker, parent_id
        self.bar: Bar | None = None
        self.num_done = 0
        self.reported_costs: dict[str, dict[str, float]] = {}

    def start_trial(self, proposal: Proposal) -> dict[str, Any]:
        """Record a trial as running, and return its Tune config."""
        record = self.known.setdefault(proposal.run_id, TrialRecord(proposal.run_id, proposal.settings, proposal.role))
        record.state = RUNNING
        config = self.plan.make_config(proposal.settings)
        record.full_steps = config.total_steps
        self.records.save(record)
        return {
            "run_id": proposal.run_id,
            "settings": proposal.settings,
            "known": sorted(record.rows),
            "parent": self.parent_id,
        }

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        record = self.known[trial.config["run_id"]]
        self._add_costs(record, trial.trial_id, result.get("costs") or {})
        if "row" in result:
            record.add_row(result["row"])
        if "artifact" in result:
            record.state, record.artifact = FINISHED, result["artifact"]
        if "failed" in result:
            record.state, record.reason = FAILED, result["failed"]
        self.records.save(record)
        self._update_bar()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        record = self.known[trial.config["run_id"]]
        if record.state == RUNNING and "interrupted" not in (trial.last_result or {}):
            record.state, record.steps = PRUNED, record.steps + 1  # the step in which the run notices the stop
        self._finish_trial(record)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        record = self.known[trial.config["run_id"]]
        lines = [line.strip() for line in str(trial.get_error() or "").splitlines()]
        message = next((line for line in reversed(lines) if line), "its process died")
        record.state, record.reason = FAILED, message[:500]
        self._finish_trial(record)

    def _add_costs(self, record: TrialRecord, trial_id: str, costs: dict[str, float]) -> None:
        """Add the seconds since the trial's last report; those of earlier attempts stay in the record."""
        before = self.reported_costs.get(trial_id, {})
        if costs.get("wall_s", 0.0) < before.get("wall_s", 0.0):
            before = {}  # its process died, and another one resumed it
        for name in ("wall_s", "trained_s", "judged_s"):
            setattr(record, name, getattr(record, name) + costs.get(name, 0.0) - before.get(name, 0.0))
        self.reported_costs[trial_id] = costs
        record.steps = max(record.steps, int(costs.get("steps", 0)))

    def _finish_trial(self, record: TrialRecord) -> None:
        self.records.save(record)
        self.num_done += 1
        if record.state == FAILED:
            console.print(f"trial {record.run_id} failed: {record.reason}", style="yellow", markup=False)
        self._update_bar()
        try:
            self._tag_mlflow_run(record)
        except Exception as error:  # tracking must not end a sweep
            logging.getLogger(__name__).warning("could not record in MLflow how %s ended: %s", record.run_id, error)

    def _tag_mlflow_run(self, record: TrialRecord) -> None:
        """Tag the MLflow run of a trial with its sweep and how it ended."""
        mlflow_id = self.tracker.find_run(record.run_id)
        if mlflow_id is None or record.state not in STATUS:
            return
        for name, value in {
            "mlflow.parentRunId": self.parent_id,
            "presto.sweep": self.plan.id,
            "presto.trial": record.state,
            "presto.trial.reason": record.reason,
        }.items():
            self.tracker.client.set_tag(mlflow_id, name, value)
        with suppress(Exception):
            self.tracker.client.set_terminated(mlflow_id, status=STATUS[record.state])

    def _update_bar(self) -> None:
        if not self.bar:
            return
        states = [record.state for record in self.known.values()]
        values = [r.last_value(self.plan.metric) for r in self.known.values() if r.rows and r.role == "trial"]
        choose = min if self.plan.sweep.sweep.mode == "min" else max
        best = f", best {self.plan.metric} {choose(values):.3g}" if values else ""
        counts = ", ".join(f"{states.count(s)} {s}" for s in (RUNNING, FINISHED, PRUNED, FAILED) if s in states)
        self.bar.update(min(self.num_done, self.bar.total), counts + best)
