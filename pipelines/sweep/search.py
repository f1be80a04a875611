"""Searchers and early-stopping schedulers of a sweep for Ray Tune; both resume from the sweep's own records."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from pipelines.sweep.plan import Proposal, SweepPlan, round_value
from pipelines.sweep.store import FINISHED, PRUNED, TRIAL, TrialRecord
from presto_core.extras import import_extra
from tune_spaces.domains import Choice, Range, sample

UPDATE = "update"  # time attribute of the schedulers
MAX_DUPLICATE_PROPOSALS = 50  # consecutive repeated proposals after which the space counts as used up


class FixedListSearcher(Searcher):  # type: ignore[misc]
    """Proposes settings that are known in advance: of a grid, a random search, or repeats."""

    def __init__(self, proposals: Iterable[Proposal], start_trial: Callable[[Proposal], dict[str, Any]]) -> None:
        super().__init__(metric=None, mode=None)
        self.proposals, self.given = list(proposals), start_trial

    def suggest(self, trial_id: str) -> Any:
        return self.given(self.proposals.pop(0)) if self.proposals else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass


class OptunaSearcher(Searcher):  # type: ignore[misc]
    """Proposes settings by Optuna's TPE, with all earlier trials as data; several metrics are optimized jointly."""

    def __init__(
        self, plan: SweepPlan, start_trial: Callable[[Proposal], dict[str, Any]], records: dict[str, TrialRecord]
    ) -> None:
        optuna = import_extra("optuna", "sweep.search=optuna")
        super().__init__(metric=None, mode=None)
        optuna.logging.set_verbosity(logging.ERROR)
        self.plan, self.given, self.records = plan, start_trial, records
        sweep = plan.sweep.sweep
        others = ["minimize"] * (len(plan.metrics) - 1)
        sampler = optuna.samplers.TPESampler(seed=sweep.seed + len(records))
        self.study = optuna.create_study(directions=[f"{sweep.mode}imize", *others], sampler=sampler)
        self.running: dict[str, tuple[Any, str]] = {}
        searched = [record for record in records.values() if record.role == TRIAL]
        self.num_left = sweep.samples - len(searched)
        for record in searched:
            if record.is_done:
                self._report_result(self._replay_trial(record.settings), record)
        self.to_resume = [record for record in searched if not record.is_done]

    def suggest(self, trial_id: str) -> Any:
        if self.to_resume:
            record = self.to_resume.pop()
            self.running[trial_id] = (self._replay_trial(record.settings), record.run_id)
            return self.given(Proposal(record.settings, record.run_id))
        for _ in range(MAX_DUPLICATE_PROPOSALS):
            if self.num_left <= 0:
                break
            trial = self.study.ask()
            settings = (
                {} if not self.records and not self.running else sample(self.plan.space, partial(_suggest_value, trial))
            )
            proposal = self.plan.make_proposal(settings)
            earlier = self.records.get(proposal.run_id)
            is_running = proposal.run_id in {run_id for _, run_id in self.running.values()}
            if earlier is None and not is_running:
                self.num_left -= 1
                self.running[trial_id] = (trial, proposal.run_id)
                return self.given(proposal)
            self._report_result(trial, earlier)
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial, run_id = self.running.pop(trial_id)
        self._report_result(trial, self.records.get(run_id))

    def _replay_trial(self, settings: dict[str, Any]) -> Any:
        """Return a trial of the study with these settings."""
        self.study.enqueue_trial(_flatten_settings(self.plan, settings))
        trial = self.study.ask()
        if settings:
            sample(self.plan.space, partial(_suggest_value, trial))
        return trial

    def _report_result(self, trial: Any, record: TrialRecord | None) -> None:
        trial_state = import_extra("optuna.trial", "sweep.search=optuna").TrialState
        values = [record.last_value(m) for m in self.plan.metrics] if record and record.rows else []
        if record and record.state in (FINISHED, PRUNED) and all(map(math.isfinite, values)) and values:
            self.study.tell(trial, values)
        else:
            self.study.tell(trial, state=trial_state.FAIL)


def _suggest_value(trial: Any, name: str, domain: Choice | Range) -> Any:
    """Return a value from Optuna; categories are encoded as JSON, since Optuna supports only scalars."""
    if isinstance(domain, Choice):
        return json.loads(trial.suggest_categorical(name, [json.dumps(value) for value in domain.values]))
    if domain.integer:
        return trial.suggest_int(name, round(domain.low), round(domain.high))
    return round_value(trial.suggest_float(name, domain.low, domain.high, log=domain.log), domain)


def _flatten_settings(plan: SweepPlan, settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings under the names that Optuna knows them by."""
    flat: dict[str, Any] = {}

    def get_setting(name: str, domain: Choice | Range) -> Any:
        key = name if name in settings else ".".join((*name.split(".")[:-2], name.split(".")[-1]))
        flat[name] = json.dumps(settings[key]) if isinstance(domain, Choice) else settings[key]
        return settings[key]

    if settings:
        sample(plan.space, get_setting)
    return flat


def make_scheduler(plan: SweepPlan, records: Iterable[TrialRecord]) -> TrialScheduler:
    """Return the early-stopping scheduler with the results of earlier trials: Tune does not restore its rungs."""
    sweep = plan.sweep.sweep
    common = {"time_attr": UPDATE, "metric": plan.metric, "mode": sweep.mode, "grace_period": plan.grace}
    if sweep.scheduler == "asha":
        asha = AsyncHyperBandScheduler(max_t=plan.base.updates + 1, reduction_factor=sweep.reduction, **common)
        sign = 1 if sweep.mode == "max" else -1
        for record in records:
            for update, row in sorted(record.rows.items()):
                asha._brackets[0].on_result(_ReplayedTrial(record.run_id), update, sign * row[plan.metric])
        return asha
    if sweep.scheduler == "median":
        median = MedianRule(min_samples_required=3, **common)
        for record in records:
            if record.rows:
                median._results[_ReplayedTrial(record.run_id)] = [
                    {UPDATE: update, plan.metric: row[plan.metric]} for update, row in sorted(record.rows.items())
                ]
        return median
    return FIFOScheduler()


class MedianRule(MedianStoppingRule):  # type: ignore[misc]
    """Ray's rule, which takes the last report of every trial for a validation; one that failed reports its reason."""

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if self._time_attr in result and self._metric in result:
            super().on_trial_complete(tune_controller, trial, result)


@dataclass(frozen=True)
class _ReplayedTrial:
    """A trial of an earlier attempt, as schedulers know it."""

    trial_id: str
