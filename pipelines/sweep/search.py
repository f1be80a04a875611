"""Where a sweep's next settings come from, and when Ray Tune stops a trial; both go on from the sweep's own records."""

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

from pipelines.sweep.plan import (
    Plan,
    Proposal,
    rounded,
)
from pipelines.sweep.store import (
    FINISHED,
    PRUNED,
    TRIAL,
    Record,
)
from tune_spaces.domains import (
    Choice,
    Range,
    walk,
)

UPDATE = "update"  # what schedulers count
REPEATED = 50  # proposals on end that were made before, after which there is nothing new to try


class Listed(Searcher):  # type: ignore[misc]
    """Settings that are known beforehand: of a grid, a random search, or repeats."""

    def __init__(self, proposals: Iterable[Proposal], given: Callable[[Proposal], dict[str, Any]]) -> None:
        super().__init__(metric=None, mode=None)
        self.proposals, self.given = list(proposals), given

    def suggest(self, trial_id: str) -> Any:
        return self.given(self.proposals.pop(0)) if self.proposals else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass


class Learned(Searcher):  # type: ignore[misc]
    """Optuna's proposals (TPE; of several metrics, the front is sought), told of all trials before it."""

    def __init__(self, plan: Plan, given: Callable[[Proposal], dict[str, Any]], records: dict[str, Record]) -> None:
        import optuna

        super().__init__(metric=None, mode=None)
        optuna.logging.set_verbosity(logging.ERROR)
        self.plan, self.given, self.records = plan, given, records
        sweep = plan.sweep.sweep
        others = ["minimize"] * (len(sweep.metrics) - 1)
        sampler = optuna.samplers.TPESampler(seed=sweep.seed + len(records))
        self.study = optuna.create_study(directions=[f"{sweep.mode}imize", *others], sampler=sampler)
        self.asked: dict[str, tuple[Any, str]] = {}
        mine = [record for record in records.values() if record.role == TRIAL]
        self.left = sweep.samples - len(mine)
        for record in mine:
            if record.over:
                self._tell(self._replayed(record.settings), record)
        self.resumed = [record for record in mine if not record.over]

    def suggest(self, trial_id: str) -> Any:
        if self.resumed:
            record = self.resumed.pop()
            self.asked[trial_id] = (self._replayed(record.settings), record.run_id)
            return self.given(Proposal(record.settings, record.run_id))
        for _ in range(REPEATED):
            if self.left <= 0:
                break
            trial = self.study.ask()
            own = {} if not self.records and not self.asked else walk(self.plan.space, partial(_suggested, trial))
            proposal = self.plan.proposal(own)
            known = self.records.get(proposal.run_id)
            under_way = proposal.run_id in {run_id for _, run_id in self.asked.values()}
            if known is None and not under_way:
                self.left -= 1
                self.asked[trial_id] = (trial, proposal.run_id)
                return self.given(proposal)
            self._tell(trial, known)
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial, run_id = self.asked.pop(trial_id)
        self._tell(trial, self.records.get(run_id))

    def _replayed(self, settings: dict[str, Any]) -> Any:
        """A trial of the study that has these settings."""
        self.study.enqueue_trial(_flat(self.plan, settings))
        trial = self.study.ask()
        if settings:
            walk(self.plan.space, partial(_suggested, trial))
        return trial

    def _tell(self, trial: Any, record: Record | None) -> None:
        from optuna.trial import TrialState

        values = [record.value(m) for m in self.plan.sweep.sweep.metrics] if record and record.rows else []
        if record and record.state in (FINISHED, PRUNED) and all(map(math.isfinite, values)) and values:
            self.study.tell(trial, values)
        else:
            self.study.tell(trial, state=TrialState.FAIL)


def _suggested(trial: Any, name: str, domain: Choice | Range) -> Any:
    """A value from Optuna; what it cannot hold as a category travels as JSON."""
    if isinstance(domain, Choice):
        return json.loads(trial.suggest_categorical(name, [json.dumps(value) for value in domain.values]))
    if domain.integer:
        return trial.suggest_int(name, round(domain.low), round(domain.high))
    return rounded(trial.suggest_float(name, domain.low, domain.high, log=domain.log), domain)


def _flat(plan: Plan, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings under the names that Optuna knows them by."""
    flat: dict[str, Any] = {}

    def recall(name: str, domain: Choice | Range) -> Any:
        key = name if name in settings else ".".join((*name.split(".")[:-2], name.split(".")[-1]))
        flat[name] = json.dumps(settings[key]) if isinstance(domain, Choice) else settings[key]
        return settings[key]

    if settings:
        walk(plan.space, recall)
    return flat


def scheduler_of(plan: Plan, records: Iterable[Record]) -> TrialScheduler:
    """What stops trials early, with what it has seen of earlier ones: Tune itself would forget its rungs."""
    sweep = plan.sweep.sweep
    common = {"time_attr": UPDATE, "metric": plan.metric, "mode": sweep.mode, "grace_period": plan.grace}
    if sweep.scheduler == "asha":
        asha = AsyncHyperBandScheduler(max_t=plan.base.updates + 1, reduction_factor=sweep.reduction, **common)
        sign = 1 if sweep.mode == "max" else -1
        for record in records:
            for update, row in sorted(record.rows.items()):
                asha._brackets[0].on_result(_Seen(record.run_id), update, sign * row[plan.metric])
        return asha
    if sweep.scheduler == "median":
        median = MedianStoppingRule(min_samples_required=3, **common)
        for record in records:
            if record.rows:
                seen = _Seen(record.run_id)
                median._results[seen] = [{UPDATE: u, plan.metric: row[plan.metric]} for u, row in record.rows.items()]
                median._completed_trials.add(seen)
        return median
    return FIFOScheduler()


@dataclass(frozen=True)
class _Seen:
    """A trial of an earlier life, as schedulers know it."""

    trial_id: str
