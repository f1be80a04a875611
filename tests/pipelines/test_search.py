"""The trials of the search are valid settings that differ, and its table ranks them by what is reported."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipelines.demo import stage_configs
from pipelines.search import SHORT, judged, ranked, run, to_markdown
from presto_core.config.errors import UserError
from presto_core.config.schema import StageConfig
from tune_spaces.trials import STUDENT_TRIALS, overrides


def student_of(trial: dict[str, Any]) -> StageConfig:
    return stage_configs("science", [*SHORT, *overrides(trial)])["S"]


def test_every_trial_fits_the_schema_and_no_two_are_the_same_run():
    runs = [student_of(trial).model_dump_json() for trial in STUDENT_TRIALS.values()]
    assert len(set(runs)) == len(STUDENT_TRIALS)


def test_a_trial_changes_what_it_names_and_nothing_else():
    trial = {"steps.gan.generator_weight": 0.0, "steps.p_dmd": {"kind": "karras", "rho": 3.0}}
    plain, changed = (student_of(t).model_dump() for t in ({}, trial))
    assert changed["steps"]["gan"].pop("generator_weight") == 0
    assert changed["steps"].pop("p_dmd")["rho"] == 3
    del plain["steps"]["gan"]["generator_weight"], plain["steps"]["p_dmd"]
    assert changed == plain


def report(fd: dict[int, float]) -> bytes:
    base = {"role": "base", "steps": 4, "fd": 0.1, "mmd": 0.1}
    rows = [{"role": "student", "steps": n, "fd": value, "mmd": value / 1000} for n, value in fd.items()]
    return json.dumps({"systems": [base, *rows]}).encode()


def test_trials_are_ranked_by_their_distance_at_four_steps():
    found = [judged("a", {}, report({1: 9.0, 4: 5.0})), judged("b", {"x": 1}, report({1: 30.0, 4: 4.0}))]
    assert [row["trial"] for row in ranked(found)] == ["b", "a"]
    assert found[0]["fd"] == {"1": 9.0, "4": 5.0}
    assert found[0]["mmd"]["4"] == pytest.approx(0.005)
    assert to_markdown(found).splitlines()[2:] == ["| b | 30.0 | 4.0 |", "| a | 9.0 | 5.0 |"]


def test_a_search_that_could_not_rank_is_refused_before_any_work():
    with pytest.raises(UserError, match=r"distance at 4 steps; add 4 to evaluate\.student_steps"):
        run("science", ["evaluate.student_steps=[1, 2]"], local=True)
