"""Analysis of a sweep, from records with a known result."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pipelines.sweep import report as sweep_report
from pipelines.sweep.analysis import analyze, make_definition, rank
from pipelines.sweep.importance import compute_importance
from pipelines.sweep.plan import make_plan
from pipelines.sweep.store import DEFAULT, FAILED, FINISHED, PRUNED, WINNER, TrialRecord
from presto_core.config.loader import load_config
from presto_core.config.schema import StepsStage
from tune_spaces.domains import to_overrides

ARGS = ["demo", "validation.every=1", "steps.generator_updates=4", "sweep.spaces=[losses]"]
NU, RATE = "steps.gan.generator_weight", "steps.generator_optim.learning_rate"


@pytest.fixture
def sweep_definition() -> dict[str, Any]:
    return make_definition(make_plan(ARGS), "run")


def record(name: str, mmd: float, settings: dict[str, Any], **more: Any) -> TrialRecord:
    """Return a record of `updates` updates (4 by default) at the same distance."""
    row = {"fd": 100 * mmd, "mmd": mmd, "blocks_run": more.pop("blocks_run", 24.0), "latency_ms": 1.0}
    rows = {update: dict(row) for update in range(1, more.pop("updates", 4) + 1)}
    steps = 6 * len(rows)
    return TrialRecord(name, settings, state=more.pop("state", FINISHED), rows=rows, steps=steps, full_steps=24, **more)


def repeats(role: str, settings: dict[str, Any], values: list[float]) -> list[TrialRecord]:
    return [record(f"{role}{i}", v, settings | {"seed": 1000 + i}, role=role) for i, v in enumerate(values)]


def test_trials_that_came_to_the_end_are_ranked_and_others_follow(sweep_definition):
    found = [
        record("a", 3.0, {NU: 0.1}),
        record("b", 1.0, {NU: 0.2}, state=PRUNED, updates=1),
        record("c", 2.0, {}),
        record("d", 0.5, {NU: 0.3}, role=WINNER),
        TrialRecord("e", {NU: 9.0}, state=FAILED, reason="too large"),
    ]
    assert [r.run_id for r in rank(sweep_definition, found)] == ["c", "a"]
    assert [r.run_id for r in rank({**sweep_definition, "mode": "max"}, found)] == ["a", "c"]
    result = analyze(sweep_definition, found, [])
    assert [row["run_id"] for row in result["trials"]] == ["c", "a", "b", "e"]
    assert result["winner"]["settings"] == {}
    assert "No trial beat the preset's own settings" in result["verdict"]["says"]
    assert result["saved"] == {
        "steps_trained": 24 + 24 + 6,
        "steps_of_all_to_the_end": 3 * 24,
        "share": 54 / 72,
        "trial_seconds_saved": 0.0,
    }


@pytest.mark.parametrize(
    ("won", "own", "beats"),
    [
        ([1.0, 1.1, 0.9], [2.0, 2.1, 1.9], True),
        ([1.0, 1.5, 0.5], [1.2, 1.7, 0.7], False),  # better by less than the spread over seeds
        ([2.0, 2.1, 1.9], [1.0, 1.1, 0.9], False),  # the search was lucky
    ],
)
def test_the_winner_must_beat_the_preset_by_more_than_seeds_differ(sweep_definition, won, own, beats: bool):
    best = {NU: 0.2}
    found = [record("w", 0.9, best), record("d", 2.0, {}), *repeats(WINNER, best, won), *repeats(DEFAULT, {}, own)]
    verdict = analyze(sweep_definition, found, [])["verdict"]
    assert verdict["beats"] is beats
    assert ("does not beat the preset by more than chance" in verdict["says"]) is not beats
    assert verdict["low"] < verdict["gain"] < verdict["high"]
    assert verdict["gain"] == pytest.approx(sum(own) / 3 - sum(won) / 3)


def test_repeats_of_a_former_winner_do_not_count(sweep_definition):
    best = {NU: 0.2}
    found = [record("w", 0.9, best), *repeats(WINNER, {NU: 0.7}, [5.0, 5.0]), *repeats(DEFAULT, {}, [2.0, 2.0])]
    result = analyze(sweep_definition, found, [])
    assert result["repeats"][WINNER]["values"] == []
    assert "chance is not ruled out" in result["verdict"]["says"]


def test_importance_is_that_of_the_setting_which_decides(sweep_definition):
    rng = random.Random(0)
    drawn: list[dict[str, Any]] = [
        {NU: rng.random(), RATE: rng.choice([1e-5, 1e-4]), "steps.p_dmd": {"kind": rng.choice("ab")}} for _ in range(40)
    ]
    found = [
        record(
            f"r{i}", 10 * s[NU] + 0.01 * rng.random(), s, state=PRUNED if i % 2 else FINISHED, updates=1 + 3 * (i % 2)
        )
        for i, s in enumerate(drawn)
    ]
    result = compute_importance(sweep_definition["metrics"][0], found)
    assert result["update"] == 1
    assert result["trials"] == 40
    assert max(result["shares"], key=result["shares"].get) == NU
    assert result["shares"][NU] > 0.8
    assert sum(result["shares"].values()) == pytest.approx(1)
    assert compute_importance(sweep_definition["metrics"][0], found[:3])["shares"] == {}


def test_nothing_on_the_front_is_beaten_in_both(sweep_definition):
    rng = random.Random(1)
    found = [record(f"r{i}", rng.random(), {NU: i / 10}, blocks_run=float(rng.randint(10, 24))) for i in range(30)]
    front = set(analyze(sweep_definition, found, [])["pareto"])
    points = {r.run_id: (r.last_value("mmd"), r.last_value("blocks_run")) for r in found}

    def is_dominated(name: str) -> bool:
        mmd, blocks = points[name]
        return any(m <= mmd and b <= blocks and (m, b) != (mmd, blocks) for m, b in points.values())

    assert front == {name for name in points if not is_dominated(name)}


def test_the_winner_as_a_preset_holds_the_difference_and_means_the_same_run(sweep_definition, empty):
    settings = {
        RATE: 1e-05,
        "steps.p_dmd.kind": "karras",
        "steps.p_dmd.rho": 3.0,
        "steps.budget": {"kind": "table", "kept": [3, 6]},
    }
    result = analyze(sweep_definition, [record("w", 1.0, settings)], [])
    text = sweep_report.make_winner_preset(result)
    assert "extends: demo" in text
    assert "ema_decay" not in text
    (empty / "winner.yaml").write_text(text)
    wanted = make_plan(ARGS).make_config(settings)
    assert load_config(StepsStage, "demo", [*ARGS[1:3], *to_overrides(settings)], preset_folder=_presets()) == wanted
    assert load_config(StepsStage, empty / "winner.yaml", preset_folder=_presets()).run_id() == wanted.run_id()


def _presets() -> Any:
    from pipelines.presets.resolve import PRESETS

    return PRESETS


def test_a_page_stands_alone_and_shows_what_failed(sweep_definition):
    rng = random.Random(2)
    noise = [{"kind": "karras", "sigma_min": 0.002, "sigma_max": 80.0, "rho": r} for r in (3.0, 7.0)]
    found = [record(f"r{i}", rng.random(), {NU: i / 20, "steps.p_dmd": noise[i % 2]}) for i in range(10)]
    failed = TrialRecord("f", {NU: 2.0}, state=FAILED, reason="<script>")
    page = sweep_report.to_html(analyze({**sweep_definition, "keys": [NU, "steps.p_dmd"]}, [*found, failed], []))
    assert page.count("data:image/png;base64,") == 5
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert "src='http" not in page


def test_no_secret_reaches_a_record():
    plan = make_plan([*ARGS, "tracking.uri=http://user:password@127.0.0.1:9"])
    assert "password" not in str(make_definition(plan, "run"))
    assert (
        "password" not in analyze(make_definition(plan, "run"), [record("w", 1.0, {NU: 1.0})], [])["winner"]["command"]
    )
