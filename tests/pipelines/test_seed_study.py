"""The spread over seeds and the ratios, against numbers computed by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pipelines.workflows.seed_study import Spread, run, summarize, to_markdown
from pipelines.workflows.study_targets import TARGETS
from presto_core.errors import UserError


def row(name: str, role: str, steps: int, nfe: int, mmd: float, sampler: str = "euler") -> dict[str, Any]:
    return {
        "name": name,
        "label": name.rsplit(" ", 1)[0],
        "role": role,
        "steps": steps,
        "nfe": nfe,
        "mmd": mmd / 1000,
        "sample_distance": mmd / 2,
        "blocks_run": 6 * nfe,
        "sampler": sampler,
        "latency_ms": 9.0 * nfe,
        "total_ms": 10.0 * nfe,
        "speed_up_end_to_end": 40 / nfe,
    }


def report(student: float) -> dict[str, Any]:
    systems = [
        row("teacher dpmpp_2m 40", "teacher", 40, 40, 6.0, "dpmpp_2m"),
        row("teacher euler 40", "teacher", 40, 40, 5.0),
        row("teacher dpmpp_2m 4", "teacher", 4, 4, 30.0, "dpmpp_2m"),
        row("teacher euler 4", "teacher", 4, 4, 20.0),
        row("teacher euler 8", "teacher", 8, 8, 1.0),
        row("ASE dpmpp_2m 40", "layers", 40, 40, 8.0, "dpmpp_2m"),
        row("L dpmpp_2m 40", "layers", 40, 40, 6.0, "dpmpp_2m"),
        row("L euler 40", "layers", 40, 40, 1.0),
        row("S 2", "generator", 2, 2, 1.0, "ping_pong"),
        row("S 4", "generator", 4, 4, student, "ping_pong"),
        row("LS 4", "generator", 4, 4, 6.0, "ping_pong") | {"total_ms": 25.0},
    ]
    return {"systems": systems, "floor": {"mmd": 0.002}, "split": "test"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("few", 5 / 20), ("many", 5 / 5), ("layers", 3.0 / 4.0), ("both", 6 / 5), ("faster", 40 / 25)],
)
def test_each_target_is_the_ratio_it_describes(name: str, value: float):
    """The teacher counts with its best sampler, L and ASE with the first one, which they share."""
    assert TARGETS[name].ratio(report(5.0)["systems"]) == pytest.approx(value)


def test_the_teachers_sampler_is_the_best_by_validation_not_by_the_test_split():
    systems = report(5.0)["systems"]
    for system in systems:
        system["validation"] = {"mmd": system["mmd"]}
    systems[1]["validation"]["mmd"] = 1.0  # teacher euler 40, the better one by the test split
    assert TARGETS["many"].ratio(systems) == pytest.approx(5 / 6)


def test_spread_is_mean_and_sample_std():
    result = summarize([report(mmd) for mmd in (4.0, 5.0, 6.0)])
    student = next(r for r in result["systems"] if r["name"] == "S 4")
    assert student["mmd"] == pytest.approx({"mean": 0.005, "std": 0.001})
    assert student["blocks_run"] == 24
    assert result["ratios"]["many"] == pytest.approx({"mean": 1.0, "std": 0.2})
    assert result["floor"]["mmd"] == {"mean": 0.002, "std": None}  # the same clips with every seed
    assert Spread.from_values([3.0]) == Spread(3.0, None)
    assert Spread.from_values([1.0, 2.0]).std == pytest.approx(math.sqrt(0.5))


def test_the_spread_has_both_frechet_distances_and_the_table_shows_the_unbiased_one():
    reports = [report(5.0), report(6.0)]
    for system in (system for one in reports for system in one["systems"]):
        system.update(fd=8.0, fd_inf=2.0, precision=0.4)
    result = summarize(reports)
    assert {"fd", "fd_inf", "mmd", "precision", "sample_distance", "latency_ms"} <= result["systems"][0].keys()
    header = to_markdown(result).splitlines()[0]
    assert header == (
        "| system, mean of 2 | NFE | blocks/clip | MMD x 1000 | precision | FD∞ | to teacher | ms/clip | total ms | "
        "speed-up |"
    )


@pytest.mark.parametrize(
    ("student", "met"),
    [(4.0, ("met", "met", "missed")), (8.0, ("met", "missed", "met")), (11.0, ("missed", "missed", "met"))],
)
def test_the_verdict_follows_the_targets(student: float, met: tuple[str, str, str]):
    text = to_markdown(summarize([report(student)] * 2))
    assert f"| **S 4** | 4 | 24 | {student:.1f} ± 0.0 |" in text
    for target, verdict in zip(("≤ 0.5", "≤ 1.1", "≤ 1.25"), met):
        assert f"(target {target}: {verdict})" in text
    assert "S ÷ LS: 1.60 ± 0.00 (target ≥ 1: met)" in text


def test_settings_without_the_compared_systems_are_refused_before_any_work():
    with pytest.raises(UserError, match=r"40 steps.* evaluate\.student_steps .*evaluate\.base"):
        run("demo", ["evaluate.base=[{sampler: euler, steps: 4}]"], seeds=1, local=True)


def test_layers_evaluated_under_another_sampler_than_the_teacher_are_refused_before_any_work():
    with pytest.raises(UserError, match=r"evaluate\.layers .*evaluate\.base"):
        run("demo", ["evaluate.layers=[{sampler: euler, steps: 4}]"], seeds=1, local=True)
