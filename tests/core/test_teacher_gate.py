"""The gate of a teacher: outcomes of lines by their intervals, the lines of a report, denoising against Wiener."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from presto_core.diffusion.wiener import denoise_wiener, estimate_spectrum, invert
from presto_core.metrics.denoising import DenoisingComparison, compare_errors, list_denoising_lines, measure_errors
from presto_core.metrics.embedding_sets import EmbeddingSets, compute_mmd
from presto_core.metrics.paired_difference import estimate_difference
from presto_core.metrics.report_warnings import list_warnings
from presto_core.metrics.teacher_gate import (
    GateLine,
    divide_intervals,
    list_report_lines,
    list_step_pairs,
    name_pair,
    summarize_verdict,
)


def make_line(
    value: float, interval: tuple[float, float] | None, *, threshold: float = 1.0, better: Any = "lower"
) -> GateLine:
    return GateLine("a line", value, threshold, better, interval, "a problem")


# --- outcomes


@pytest.mark.parametrize(
    ("value", "interval", "outcome"),
    [
        (0.8, (0.7, 0.9), "pass"),
        (1.2, (1.1, 1.3), "fail"),
        (0.9, (0.7, 1.1), "undecided"),
        (1.0, (1.0, 1.0), "undecided"),  # a tie is no gain
        (0.8, (0.7, 1.0), "undecided"),
        (0.8, None, "undecided"),  # without an interval nothing passes
        (1.2, None, "fail"),
    ],
)
def test_the_interval_decides_on_both_sides(value: float, interval: tuple[float, float] | None, outcome: str) -> None:
    assert make_line(value, interval).outcome == outcome
    mirrored = None if interval is None else (-interval[1], -interval[0])
    assert make_line(-value, mirrored, threshold=-1.0, better="higher").outcome == outcome


def test_a_verdict_names_the_lines_that_decide_it() -> None:
    passing, failing, open_line = make_line(0.5, (0.4, 0.6)), make_line(2, (1.5, 2.5)), make_line(1, (0.5, 1.5))
    assert summarize_verdict([passing, passing]) == "passed"
    assert summarize_verdict([passing, open_line]) == "undecided: a line"
    assert summarize_verdict([open_line, failing, failing]) == "failed: a line, a line"


# --- intervals of ratios


def test_the_interval_of_a_ratio_of_lognormal_estimates_covers_as_often_as_intended() -> None:
    rng = np.random.default_rng(0)
    logs = np.log([0.4, 0.7]) + 0.2 * rng.standard_normal((4000, 2))
    half = 1.96 * 0.2
    covered = 0
    for a, b in np.exp(logs):
        low, high = divide_intervals(a, (a * np.exp(-half), a * np.exp(half)), b, (b * np.exp(-half), b * np.exp(half)))
        covered += low <= 0.4 / 0.7 <= high
    assert covered / len(logs) == pytest.approx(0.95, abs=0.015)


def test_a_ratio_to_an_exact_number_keeps_its_interval_and_zeros_stay_finite_or_open() -> None:
    assert divide_intervals(0.3, (0.2, 0.5), 0.6, (0.6, 0.6)) == pytest.approx((0.2 / 0.6, 0.5 / 0.6))
    assert divide_intervals(0.0, (0.0, 0.1), 0.5, (0.4, 0.6)) == pytest.approx((0.0, 0.25))
    assert divide_intervals(0.3, (0.0, 0.5), 0.6, (0.5, 0.7))[0] == 0
    assert divide_intervals(0.3, (0.2, 0.5), 0.1, (0.0, 0.7))[1] == math.inf


def test_json_has_no_infinity() -> None:
    stored = make_line(0.8, (0.7, math.inf)).to_dict()
    assert stored["interval"] == [0.7, None]
    assert json.loads(json.dumps(stored, allow_nan=False)) == stored
    assert make_line(0.8, None).to_dict()["interval"] is None


# --- lines of a report


def make_row(steps: int, mmd: float, **values: Any) -> dict[str, Any]:
    return {"name": f"teacher euler {steps}", "role": "teacher", "steps": steps, "mmd": mmd, **values}


def make_measured(**changes: Any) -> dict[str, Any]:
    shares = {"precision": 0.4, "density": 0.5, "coverage": 0.3}
    narrow = {name: [value - 0.02, value + 0.02] for name, value in shares.items()}
    adherence = {"tempo_hits": 0.5, "tempo_hits_shuffled": 0.1, "key_hits": 0.3, "key_hits_shuffled": 0.05}
    ends = {"tempo_hits": [0.4, 0.6], "key_hits": [0.2, 0.4], "clipped": [0.0, 0.02]}
    return {**shares, **adherence, "clipped": 0.0, "intervals": narrow | ends} | changes


def make_report(**changes: Any) -> dict[str, Any]:
    rows = [make_row(40, 0.05), make_row(8, 0.08), make_row(4, 0.2)]
    pairs = zip(rows, rows[1:])
    differences = {name_pair(many, few): [0.01, 0.05] for many, few in pairs}
    gate = {"teacher": make_measured(), "floor": make_measured(), "step_differences": differences}
    return {"systems": rows, "gate": gate | changes, "floor": {}}


def test_a_teacher_that_meets_every_line_passes() -> None:
    lines = list_report_lines(make_report())
    assert [line.name for line in lines] == [
        "40 steps better than 8",
        "8 steps better than 4",
        "precision / real music's",
        "density / real music's",
        "coverage / real music's",
        "clips with clipped samples",
        "tempo hits above chance",
        "key hits above chance",
    ]
    assert summarize_verdict(lines) == "passed"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"coverage": 0.05, "intervals": {"coverage": [0.03, 0.07]}},
            "coverage 0.05 is below half of real music's 0.30",
        ),
        ({"clipped": 0.4, "intervals": {"clipped": [0.3, 0.5]}}, "40% of its clips have clipped samples"),
        (
            {"key_hits": 0.04, "intervals": {"key_hits": [0.03, 0.045]}},
            "key hits 0.04 are at the level of chance (0.05)",
        ),
    ],
)
def test_each_failure_is_one_line_and_the_report_warns_of_it(changes: dict[str, Any], problem: str) -> None:
    teacher = make_measured()
    teacher |= changes | {"intervals": teacher["intervals"] | changes["intervals"]}
    report = make_report(teacher=teacher)
    assert [line.problem for line in list_report_lines(report) if line.outcome == "fail"] == [problem]
    (warning,) = [note for note in list_warnings(report) if "does not count as a base" in note]
    assert problem in warning


def test_steps_whose_difference_has_zero_in_its_interval_are_undecided() -> None:
    report = make_report()
    first = next(iter(report["gate"]["step_differences"]))
    report["gate"]["step_differences"][first] = [-0.01, 0.03]
    lines = list_report_lines(report)
    assert summarize_verdict(lines) == "undecided: 40 steps better than 8"
    assert not [note for note in list_warnings(report) if "base" in note]


def test_instruments_count_where_prompts_state_neither_tempo_nor_key() -> None:
    tags = {"tag_hits": 0.6, "tag_hits_shuffled": 0.4, "intervals": {"tag_hits": [0.5, 0.7]}}
    report = make_report(teacher=tags)
    assert [line.name for line in list_report_lines(report)][2:] == ["tag hits above chance"]
    both = make_measured(tag_hits=0.4, tag_hits_shuffled=0.4)
    assert not any("tag" in line.name for line in list_report_lines(make_report(teacher=both)))


def test_each_step_count_is_compared_with_its_best_sampler_by_validation() -> None:
    def row(name: str, steps: int, validation: float) -> dict[str, Any]:
        return make_row(steps, 0.1, validation={"mmd": validation}) | {"name": name}

    rows = [row("a 40", 40, 0.3), row("b 40", 40, 0.1), row("a 8", 8, 0.2), row("b 8", 8, 0.4), row("a 1", 1, 0.9)]
    assert [(many["name"], few["name"]) for many, few in list_step_pairs(rows)] == [("b 40", "a 8")]
    assert [(many["name"], few["name"]) for many, few in list_step_pairs([rows[0], rows[4]])] == [("a 40", "a 1")]


# --- denoising error


def test_a_teacher_that_is_the_wiener_denoiser_ties_and_does_not_pass() -> None:
    latents = torch.randn(40, 2, 12, generator=torch.Generator().manual_seed(0)).cumsum(dim=-1)
    spectrum, sigma = estimate_spectrum(latents), torch.full((40,), 0.7)
    noisy = latents + 0.7 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    mine, theirs = (measure_errors(lambda x: denoise_wiener(x, sigma, spectrum), latents, noisy) for _ in range(2))
    comparison = compare_errors(0.7, mine, theirs, np.arange(40) // 4)
    assert comparison.ratio == 1
    assert comparison.interval == pytest.approx((1, 1), abs=1e-5)
    assert [line.outcome for line in list_denoising_lines([comparison])] == ["undecided"]


def test_the_posterior_mean_of_a_mixture_beats_wiener_and_passes() -> None:
    """x = +m or -m: the posterior mean is m tanh(<x, m> / sigma^2), which no linear denoiser can follow."""
    rng = torch.Generator().manual_seed(2)
    mode = 2 * F.normalize(invert(torch.randn(1, 12, generator=rng).double()).float(), dim=-1)
    signs = torch.randint(0, 2, (1000, 1, 1), generator=rng).float() * 2 - 1
    latents = signs * mode
    noisy = latents + torch.randn(latents.shape, generator=rng)
    posterior = measure_errors(lambda x: mode * torch.tanh((x * mode).sum(dim=(1, 2), keepdim=True)), latents, noisy)
    level, spectrum = torch.ones(1000), estimate_spectrum(latents)
    wiener = measure_errors(lambda x: denoise_wiener(x, level, spectrum), latents, noisy)
    comparison = compare_errors(1.0, posterior, wiener, np.arange(1000))
    assert comparison.ratio < 0.9
    assert list_denoising_lines([comparison])[0].outcome == "pass"
    assert list_denoising_lines([compare_errors(1.0, wiener, posterior, np.arange(1000))])[0].outcome == "fail"


def test_intervals_of_a_ratio_of_errors_cover_over_tracks() -> None:
    """Errors of a row are gamma, times a factor that its track shares: the ratio of expectations is 0.8."""
    rng, tracks, covered = np.random.default_rng(3), np.repeat(np.arange(60), 5), 0
    for _ in range(300):
        shared = rng.lognormal(0, 0.5, 60)[tracks]
        own = rng.lognormal(0, 0.1, 60)[tracks]
        errors, wiener = 0.8 * shared * rng.gamma(50, 0.02, 300) * own, shared * rng.gamma(50, 0.02, 300)
        interval = compare_errors(1.0, errors / np.exp(0.005), wiener, tracks).interval
        assert interval
        assert interval
        covered += interval[0] <= 0.8 <= interval[1]
    assert covered / 300 == pytest.approx(0.95, abs=0.045)


def test_few_tracks_give_no_interval_and_an_infinite_error_is_refused() -> None:
    assert compare_errors(1.0, np.ones(6), np.full(6, 2.0), np.arange(6) // 2).interval is None
    x0 = torch.zeros(2, 1, 4)
    with pytest.raises(ValueError, match="not finite"):
        measure_errors(lambda x: x * float("nan"), x0, x0 + 1)


def test_a_line_names_the_level_and_both_errors() -> None:
    line = list_denoising_lines([DenoisingComparison(3.5, 0.6, 0.5, 1.2, (1.1, 1.3))])[0]
    assert line.problem == "at sigma 3.5 its denoising error 0.6 is above the Wiener denoiser's 0.5"


# --- paired differences


def _make_sets(shift: float, noise: np.ndarray[Any, Any], reference: np.ndarray[Any, Any]) -> EmbeddingSets:
    tracks = np.arange(len(noise)) // 2
    return EmbeddingSets(noise + shift, reference, generated_groups=tracks, reference_groups=np.arange(len(reference)))


def test_the_difference_of_a_system_with_itself_is_exactly_zero_and_of_a_shifted_one_above() -> None:
    rng = np.random.default_rng(4)
    noise, reference = rng.standard_normal((80, 4)), rng.standard_normal((90, 4))
    one, shifted = _make_sets(0.0, noise, reference), _make_sets(0.5, noise, reference)
    assert estimate_difference(one, one, "mmd", groups=10, confidence=0.95) == (0.0, 0.0)
    ends = estimate_difference(shifted, one, "mmd", groups=10, confidence=0.95)
    assert ends
    assert ends[0] > 0
    assert sum(ends) / 2 == pytest.approx(compute_mmd(shifted) - compute_mmd(one))


def test_clips_of_other_prompts_have_no_paired_difference() -> None:
    rng = np.random.default_rng(5)
    noise, reference = rng.standard_normal((20, 3)), rng.standard_normal((20, 3))
    with pytest.raises(ValueError, match="different prompts"):
        estimate_difference(
            _make_sets(0, noise, reference), _make_sets(0, noise[:10], reference), "mmd", groups=5, confidence=0.95
        )
