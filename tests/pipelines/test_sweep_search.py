"""What a sweep tries next and whom it stops early, also after the command was killed: from its own records."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from pipelines.sweep.plan import Proposal, SweepPlan, make_plan
from pipelines.sweep.search import FixedListSearcher, OptunaSearcher, make_scheduler
from pipelines.sweep.store import FAILED, FINISHED, PRUNED, RUNNING, TRIAL, WINNER, TrialRecord

DECAY, SEED = "steps.ema_decay", "seed"
RANGE = {DECAY: {"low": 0.1, "high": 0.9}}


def make(domains: dict[str, Any] | None = None, *args: str, **sweep: object) -> SweepPlan:
    words = [f"sweep.{key}={json.dumps(value)}" for key, value in ({"search": "optuna", "samples": 4} | sweep).items()]
    own = [f"sweep.domains={json.dumps(domains)}"] if domains else []
    return make_plan(["demo", "steps.generator_updates=20", "validation.every=1", *own, *words, *args])


def make_record(plan: SweepPlan, settings: dict[str, Any], *values: float, **more: Any) -> TrialRecord:
    """A record with one validation per value, at updates 1, 2, ..."""
    rows = {update: {plan.metric: value} for update, value in enumerate(values, 1)}
    return TrialRecord(plan.make_proposal(settings).run_id, settings, **{"state": FINISHED, "rows": rows} | more)


class Sweep:
    """A searcher as Ray Tune drives it, with the records that its callback would keep."""

    def __init__(self, plan: SweepPlan, *records: TrialRecord) -> None:
        self.plan, self.records = plan, {record.run_id: record for record in records}
        self.searcher = OptunaSearcher(plan, self.start_trial, self.records)
        self.count = 0

    def start_trial(self, proposal: Proposal) -> dict[str, Any]:
        self.records.setdefault(proposal.run_id, TrialRecord(proposal.run_id, proposal.settings)).state = RUNNING
        return {"run_id": proposal.run_id, "settings": proposal.settings}

    def suggest(self) -> Any:
        self.count += 1
        return self.searcher.suggest(f"t{self.count}")

    def finish(self, run_id: str, value: float, state: str = FINISHED) -> None:
        self.records[run_id].rows[1], self.records[run_id].state = {self.plan.metric: value}, state
        self.searcher.on_trial_complete(f"t{self.count}")

    def run_all(self) -> list[dict[str, Any]]:
        """Settings of all trials; the metric is the moving average's distance from 0.5."""
        settings = []
        while (trial := self.suggest()) != Searcher.FINISHED:
            settings.append(trial["settings"])
            self.finish(trial["run_id"], abs(trial["settings"].get(DECAY, 0.98) - 0.5))
        return settings

    @property
    def values(self) -> list[Any]:
        """What the study knows: the values of a trial, or None where it failed."""
        return [trial.values for trial in self.searcher.study.trials if trial.state.is_finished()]


# --- lists


def test_a_list_is_proposed_in_order_and_then_ends():
    plan = make({SEED: [0, 1]})
    proposals = [plan.make_proposal({SEED: seed}) for seed in (1, 0)]
    searcher = FixedListSearcher(proposals, lambda proposal: proposal.settings)
    assert [searcher.suggest(str(i)) for i in range(3)] == [{SEED: 1}, {SEED: 0}, Searcher.FINISHED]
    assert len(proposals) == 2


# --- Optuna


def test_the_presets_own_settings_come_first_and_samples_are_a_limit():
    sweep = Sweep(make(RANGE))
    settings = sweep.run_all()
    assert settings[0] == {}
    assert len(settings) == len(sweep.records) == 4
    assert all(0.1 <= tried[DECAY] <= 0.9 for tried in settings[1:])
    assert sweep.values == [[abs(tried.get(DECAY, 0.98) - 0.5)] for tried in settings]


def test_the_same_seed_proposes_the_same_settings():
    first, again, other = (Sweep(make(RANGE, seed=seed)).run_all() for seed in (0, 0, 1))
    assert first == again != other


def test_a_space_that_is_used_up_ends_the_search_without_a_repeat():
    settings = Sweep(make({SEED: [0, 1, 2]}, samples=50)).run_all()
    assert sorted(tried.get(SEED, 0) for tried in settings) == [0, 1, 2]


def test_settings_that_run_at_the_moment_are_not_proposed_again():
    sweep = Sweep(make({SEED: [0, 1]}, samples=50))
    trials = [sweep.suggest() for _ in range(3)]
    assert trials[2] == Searcher.FINISHED
    assert trials[0]["run_id"] != trials[1]["run_id"]


def test_a_killed_sweep_resumes_what_ran_and_counts_what_was_done():
    plan = make(RANGE)
    done, running = make_record(plan, {}, 0.3), make_record(plan, {DECAY: 0.2}, state=RUNNING)
    repeat = make_record(plan, {DECAY: 0.2, SEED: 1000}, 9.0, role=WINNER)
    sweep = Sweep(plan, done, running, repeat)
    assert sweep.values == [[0.3]]  # repeats are no part of the search
    settings = sweep.run_all()
    assert settings[0] == {DECAY: 0.2}
    assert len(settings) == 3  # that, and two new ones
    assert len([r for r in sweep.records.values() if r.role == TRIAL]) == plan.num_trials == 4


@pytest.mark.parametrize(
    ("state", "values", "expected"),
    [
        (FINISHED, (3.0, 2.0), [2.0]),
        (PRUNED, (3.0,), [3.0]),
        (FAILED, (3.0,), None),
        (PRUNED, (), None),
        (FINISHED, (float("nan"),), None),
        (FINISHED, (float("inf"),), None),
    ],
)
def test_the_study_gets_the_last_finite_value_or_a_failure(state: str, values: tuple[float, ...], expected: Any):
    plan = make(RANGE)
    assert Sweep(plan, make_record(plan, {DECAY: 0.2}, *values, state=state)).values == [expected]


def test_conditional_settings_and_whole_sections_are_replayed_as_they_were():
    budget = {"kind": "table", "kept": [1, 2]}
    plan = make({"steps.budget": [budget, {"kind": "full"}]}, spaces=["noise"])
    proposal = next(p for p in plan_random(plan) if p.settings.get("steps.p_dmd.kind") == "lognormal")
    study = Sweep(plan, make_record(plan, proposal.settings, 1.0)).searcher.study
    params = study.trials[0].params
    assert json.loads(params["steps.p_dmd.kind"]) == "lognormal"
    mean = params["steps.p_dmd.lognormal.mean"]
    assert (json.loads(mean) if isinstance(mean, str) else mean) == proposal.settings["steps.p_dmd.mean"]
    assert json.loads(params["steps.budget"]) == proposal.settings["steps.budget"]


def plan_random(plan: SweepPlan) -> list[Proposal]:
    sweep = plan.sweep.sweep.model_copy(update={"search": "random", "samples": 30})
    drawn = SweepPlan(
        plan.sweep.model_copy(update={"sweep": sweep}), plan.base, plan.preset, plan.overrides, plan.space, plan.depth
    )
    return list(drawn.iter_proposals())


def test_of_several_metrics_the_first_has_the_direction_and_others_are_minimized():
    plan = make(RANGE, mode="max", metrics=["fd", "mmd"])
    record = make_record(plan, {DECAY: 0.2})
    record.rows = {1: {"fd": 2.0, "mmd": 0.5}}
    sweep = Sweep(plan, record)
    assert [direction.name for direction in sweep.searcher.study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert sweep.values == [[2.0, 0.5]]


# --- schedulers


@dataclass(frozen=True)
class TuneTrial:
    """A trial as schedulers know it."""

    trial_id: str


class OneTrialController:
    """Ray Tune with no other trial alive."""

    def get_live_trials(self) -> list[TuneTrial]:
        return []


def decide(scheduler: TrialScheduler, plan: SweepPlan, update: int, value: float) -> str:
    trial, controller = TuneTrial(f"new-{value}"), OneTrialController()
    scheduler.on_trial_add(controller, trial)
    return str(scheduler.on_trial_result(controller, trial, {"update": update, plan.metric: value}))


def make_earlier(plan: SweepPlan) -> list[TrialRecord]:
    """Nine trials of an earlier attempt, of which the metric is 1 to 9 at updates 1 to 3."""
    return [make_record(plan, {SEED: seed}, *[float(seed)] * 3) for seed in range(1, 10)]


@pytest.mark.parametrize(
    ("mode", "good", "bad"), [("min", 0.5, 5.0), ("min", 2.9, 9.5), ("max", 9.5, 5.0), ("max", 7.1, 0.5)]
)
def test_asha_stops_what_is_below_the_best_third_of_an_earlier_attempt(mode: str, good: float, bad: float):
    plan = make(RANGE, mode=mode, scheduler="asha", reduction=3)
    for value, wanted in ((good, TrialScheduler.CONTINUE), (bad, TrialScheduler.STOP)):
        scheduler = make_scheduler(plan, make_earlier(plan))
        assert isinstance(scheduler, AsyncHyperBandScheduler)
        assert decide(scheduler, plan, 1, value) == wanted


def test_nobody_is_stopped_before_the_grace_is_over():
    plan = make(RANGE, scheduler="asha", grace=2)
    assert decide(make_scheduler(plan, make_earlier(plan)), plan, 1, 99.0) == TrialScheduler.CONTINUE
    assert decide(make_scheduler(plan, make_earlier(plan)), plan, 2, 99.0) == TrialScheduler.STOP


def test_the_median_rule_remembers_an_earlier_attempt():
    plan = make(RANGE, scheduler="median")
    scheduler = make_scheduler(plan, make_earlier(plan))
    assert isinstance(scheduler, MedianStoppingRule)
    assert decide(scheduler, plan, 1, 4.0) == TrialScheduler.CONTINUE
    assert decide(scheduler, plan, 1, 6.0) == TrialScheduler.STOP
    few = make_scheduler(plan, make_earlier(plan)[:2])
    assert decide(few, plan, 1, 6.0) == TrialScheduler.CONTINUE


def test_a_trial_that_failed_does_not_disturb_the_median_rule():
    plan = make(RANGE, scheduler="median")
    scheduler = make_scheduler(plan, make_earlier(plan))
    scheduler.on_trial_complete(None, TuneTrial("failed"), {"failed": "too large"})
    assert decide(scheduler, plan, 1, 4.0) == TrialScheduler.CONTINUE
    scheduler.on_trial_complete(None, TuneTrial("new-4.0"), {"update": 1, plan.metric: 4.0})
    assert decide(scheduler, plan, 1, 6.0) == TrialScheduler.STOP


def test_without_a_scheduler_everybody_goes_to_the_end():
    plan = make(RANGE, scheduler="none")
    assert type(make_scheduler(plan, make_earlier(plan))) is FIFOScheduler
