"""`presto study paper`: its cells are the runs of the ordinary commands, and its verdicts follow from the numbers."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipelines.presets.resolve import PRESETS
from pipelines.workflows import paper_study, paper_study_plan
from pipelines.workflows.paper_study_cells import (
    ASE,
    GUIDANCE_SCALES,
    LS,
    LS_FROM_ASE,
    RHOS,
    L,
    S,
    StudySystem,
    list_teacher_systems,
    name_guidance_cell,
    name_noise_cell,
)
from pipelines.workflows.paper_study_claims import CLAIMS, combine_verdicts, decide, estimate_contrast
from pipelines.workflows.paper_study_measure import count_blocks
from pipelines.workflows.paper_study_plan import Study, list_runs, make_study
from pipelines.workflows.paper_study_report import StudyResults
from presto_core.artifacts.manifest import Artifact
from presto_core.config.layers import PrestoLSBudget
from presto_core.config.loader import load_config
from presto_core.config.noise import KarrasNoise
from presto_core.config.sampling import BaseSampler, ScheduleConfig
from presto_core.config.schema import LayersStage, StepsStage
from presto_core.config.sections import InputsConfig
from presto_core.errors import UserError
from presto_core.models.model_card import ModelCard
from presto_core.networks.layer_budget import LayerBudget


def artifact(identifier: str, kind: str, **manifest: Any) -> Artifact:
    return Artifact(identifier, kind, f"/nowhere/{identifier}", {"id": identifier, "kind": kind, **manifest})


DATASET, TEACHER = artifact("d" * 16, "dataset"), artifact("a" * 16, "teacher")


def study_of(*only: str, seeds: int = 2, overrides: tuple[str, ...] = (), preset: str = "demo") -> Study:
    study = make_study(preset, list(overrides), only=only, seeds=seeds)
    return Study(**{**vars(study), "teachers": {"ours": TEACHER}, "dataset": DATASET})


# --- cells


def test_the_noise_group_is_the_table_of_three_roles_and_one_of_its_runs_is_the_presets_own():
    study = study_of("noise", "gan", seeds=1, preset="paper_study")
    runs = {run.cell.name: run for run in list_runs(study)}
    table = [name_noise_cell(choice) for choice in product(("train", "inf"), repeat=3)]
    assert set(table) <= set(runs)
    assert len({runs[name].run_id for name in table}) == 8
    cells = study.list_cells()
    (own,) = study.iter_runs(0, TEACHER, [cells["S lsgan"]])
    assert own.run_id == runs["S train/train/train"].run_id  # least squares and sigma^train are the preset's
    steps = runs["S inf/train/inf"].config.section
    assert isinstance(steps.p_dmd, KarrasNoise)
    assert isinstance(steps.p_gan, KarrasNoise)
    assert steps.p_dsm == runs["S train/train/train"].config.section.p_dsm


def test_a_cell_is_the_run_of_the_ordinary_command():
    """Nothing is trained twice: not by the study and the command, and not by two groups."""
    runs = {run.cell.name: run for run in list_runs(study_of("ls", "rho", seeds=1))}
    inputs = {"dataset": DATASET.id, "teacher": TEACHER.id}
    layers = load_config(LayersStage, "demo", preset_folder=PRESETS).run_id(inputs)
    assert {name: run.run_id for name, run in runs.items() if name not in (ASE, LS_FROM_ASE)} == {
        S: load_config(StepsStage, "demo", preset_folder=PRESETS).run_id(inputs),
        L: layers,
        LS: load_config(StepsStage, "demo", preset_folder=PRESETS).run_id(inputs | {"layers": layers}),
    }
    assert runs[LS_FROM_ASE].config.inputs.layers == runs[ASE].run_id
    assert runs[LS].config.inputs == InputsConfig(
        dataset=DATASET.uri, teacher=TEACHER.uri, layers=layers, generator="presto-generator@candidate"
    )


def test_guided_cells_differ_in_the_guidance_of_the_real_score_alone():
    study = study_of("guidance", seeds=1, preset="paper_study")
    runs = {run.cell.name: run.config for run in list_runs(study)}
    assert {name: config.section.guidance_scale for name, config in runs.items()} == {
        name_guidance_cell(scale): scale for scale in GUIDANCE_SCALES
    }
    assert len({config.section.model_copy(update={"guidance_scale": 1.0}) for config in runs.values()}) == 1
    assert runs[name_guidance_cell(1)].section == load_config(StepsStage, "paper_study", preset_folder=PRESETS).section


def test_every_seed_and_teacher_has_runs_of_its_own():
    study = study_of("layers", seeds=3)
    other = Study(**{**vars(study), "teachers": {"ours": TEACHER, "theirs": artifact("b" * 16, "teacher")}})
    assert len(list_runs(other)) == 2 * len(list_runs(study)) == 2 * 3 * 5
    assert sorted({run.config.seed for run in list_runs(study)}) == [0, 1, 2]


def test_the_control_of_layer_distillation_runs_every_block():
    study = study_of("layers", seeds=1)
    control = study.load_cell(study.list_cells()["full depth"])
    assert control.section.budget.kind == "full"
    assert control.updates == study.load_cell(study.list_cells()[L]).updates


def test_an_override_reaches_every_cell_and_the_evaluation():
    study = study_of(overrides=("steps.generator_updates=7", "layers.steps=9", "evaluate.num_samples=33"))
    assert {run.config.updates for run in list_runs(study)} == {7, 9}
    assert study.evaluate.evaluate.num_samples == 33


@pytest.mark.parametrize(
    ("args", "only", "named"),
    [
        ([], ("noize",), "noize"),
        (["steps.gan.wieght_mode=absolute"], (), "weight_mode"),
        (["evaluate.base=[]"], (), "base"),
    ],
)
def test_a_mistake_is_named_before_any_work(args: list[str], only: tuple[str, ...], named: str):
    with pytest.raises(UserError, match=named):
        make_study("demo", args, only=only)


def test_a_dry_run_lists_the_cells_where_nothing_is_made_yet(workdir: Path, capsys: pytest.CaptureFixture[str]):
    assert paper_study.run("demo", ["inputs.dataset=/no/data"], only=["ls"], dry_run=True) is None
    out, err = capsys.readouterr()
    assert all(f" {name} " in out for name in (S, L, LS))
    assert "not known" in err
    assert not (workdir / paper_study_plan.FOLDER).exists()


# --- contrasts


def row(value: float, *, without: list[float] | None = None, metric: str = "mmd", **more: Any) -> dict[str, Any]:
    replicates = {"value": value, "generated": without or [], "reference": []}
    return {metric: value, "replicates": {metric: replicates}, "label": "0123", **more}


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_without_replicates_the_interval_is_students_over_paired_seeds(num_seeds: int):
    mine, other = np.random.default_rng(num_seeds).standard_normal((2, num_seeds)).tolist()
    seeds = [{"A": row(a), "B": row(b)} for a, b in zip(mine, other)]
    found = estimate_contrast({"A": 1.0, "B": -1.0}, "mmd", seeds, confidence=0.95)
    differences = np.subtract(mine, other)
    expected = stats.t.ppf(0.975, len(mine) - 1) * differences.std(ddof=1) / math.sqrt(len(mine))
    assert found
    assert found.value == pytest.approx(differences.mean())
    assert found.half_width == pytest.approx(expected, abs=1e-9)


def test_what_two_systems_share_does_not_widen_their_difference():
    """Both are measured on the same tracks: the jackknife is of the difference, group by group."""
    rng = np.random.default_rng(0)
    tracks, gap = rng.standard_normal(12), 0.3
    without = [float(np.delete(tracks, i).mean()) for i in range(12)]
    a = row(float(tracks.mean()) + gap, without=[w + gap for w in without])
    found = estimate_contrast(
        {"A": 1.0, "B": -1.0}, "mmd", [{"A": a, "B": row(float(tracks.mean()), without=without)}], confidence=0.95
    )
    alone = estimate_contrast({"A": 1.0}, "mmd", [{"A": a}], confidence=0.95)
    assert found
    assert alone
    assert found.value == pytest.approx(gap)
    assert found.half_width == pytest.approx(0, abs=1e-12)
    assert alone.half_width == pytest.approx(stats.t.ppf(0.975, 11) * tracks.std(ddof=1) / math.sqrt(12))


def test_intervals_cover_the_difference_as_often_as_they_promise():
    """Three seeds with noise of their own, and twenty groups of tracks that all seeds share."""
    rng, covered, repeats = np.random.default_rng(1), 0, 400
    for _ in range(repeats):
        tracks, seeds = rng.standard_normal(20), 0.4 * rng.standard_normal(3)
        without = [float(np.delete(tracks, i).mean()) for i in range(20)]
        rows = [{"A": row(tracks.mean() + s, without=[w + s for w in without])} for s in seeds]
        found = estimate_contrast({"A": 1.0}, "mmd", rows, confidence=0.95)
        assert found
        covered += found.interval[0] <= 0 <= found.interval[1]
    assert 0.92 <= covered / repeats <= 0.99


def test_main_effects_of_an_additive_table_are_its_terms():
    effects = {"p_dmd": -3.0, "p_dsm": 0.5, "p_gan": 2.0}  # of sigma^train
    rows = {
        f"{name_noise_cell(choice)} 4": row(10 + sum(e for e, name in zip(effects.values(), choice) if name == "train"))
        for choice in product(("train", "inf"), repeat=3)
    }
    claims = [claim for claim in CLAIMS if claim.group == "noise"][:3]
    for claim, effect in zip(claims, effects.values()):
        found = estimate_contrast(claim.weights, "mmd", [rows], confidence=0.95)
        assert found
        assert found.value == pytest.approx(effect)


@pytest.mark.parametrize(
    ("values", "sign", "verdict"),
    [
        ([-1.0, -1.1, -0.9], -1, "held"),
        ([-1.0, -1.1, -0.9], +1, "not held"),
        ([1.0, 1.1, 0.9], +1, "held"),
        ([1.0, -1.1, 0.4], -1, "undecided"),
        ([-1.0], -1, "undecided"),
        ([], -1, "not measured"),
    ],
)
def test_a_claim_is_held_if_the_interval_over_seeds_is_on_its_side(values: list[float], sign: int, verdict: str):
    rows = [{"A": row(v)} for v in values]
    assert decide(estimate_contrast({"A": 1.0}, "mmd", rows, confidence=0.95), sign) == verdict


def test_a_seed_that_lacks_a_system_is_left_out_and_teachers_must_agree():
    rows = [{"A": row(1.0), "B": row(2.0)}, {"A": row(9.0)}]
    found = estimate_contrast({"A": 1.0, "B": -1.0}, "mmd", rows, confidence=0.95)
    assert found
    assert found.by_seed == (-1.0,)
    assert combine_verdicts(["held", "held"]) == "held"
    assert combine_verdicts(["held", "undecided"]) == "undecided"


# --- results


def rows_of(study: Study, seed: int, mmd: dict[str, float]) -> dict[StudySystem, dict[str, Any]]:
    """Rows of all systems; those named have their value, plus a hundredth of the seed."""
    systems = [*list_teacher_systems(study.settings), *(s for group in study.groups for s in group.systems)]
    return {s: row(mmd.get(s.key, 5.0) + 0.01 * seed, validation={"mmd": 1.0}, blocks_run=24) for s in systems}


def test_results_hold_claims_with_verdicts_and_are_written_as_tables_and_figures(workdir: Path):
    study = study_of("ls", "rho", "inputs", seeds=3)
    results = StudyResults(study)
    for seed in range(3):
        rows = rows_of(study, seed, {"S 4": 1.0, "LS 4": 1.0, "teacher dpmpp_2m 40": 2.0, "S discrete 8": 9.0})
        rows[StudySystem(S, 4, 3.0)]["validation"]["mmd"] = 0.5
        results.add("ours", seed, rows, {"mmd": 0.002})
    result = results.write()
    (teacher,) = result["teachers"]
    verdicts = {claim["text"]: claim["verdict"] for claim in teacher["claims"]}
    assert verdicts["S at 4 steps: MMD at most 1.1 x the teacher's at 40"] == "held"
    assert verdicts["continuous: lower MMD at 1, 2, 8, 16 steps"] == "held"
    assert verdicts["LS: higher recall than S at 4 steps"] == "not measured"
    assert teacher["chosen"]["S chosen rho 4"] == "S rho=3 4"
    assert json.loads((paper_study_plan.FOLDER / "results.json").read_text()) == result
    text = (paper_study_plan.FOLDER / "results.md").read_text()
    assert "| S 4 | 3 | 1010.0 ± 10.0 |" in text
    assert {path.name for path in paper_study_plan.FOLDER.glob("*.png")} == {"ls-1.png", "rho-1.png", "inputs-1.png"}


def test_rho_is_chosen_on_the_validation_split_alone():
    study = study_of("rho", seeds=1)
    rows = rows_of(study, 0, {"S rho=12 4": 0.1})  # the best by the test split
    rows[StudySystem(S, 4, 5.0)]["validation"]["mmd"] = 0.2
    results = StudyResults(study)
    results.add("ours", 0, rows, {})
    assert results.summarize()["teachers"][0]["chosen"]["S chosen rho 4"] == "S rho=5 4"
    assert {s.rho for group in study.groups for s in group.systems} == set(RHOS)


def test_a_partial_study_reports_what_it_has():
    study = study_of(seeds=2)
    results = StudyResults(study)
    wanted = {S, LS}
    rows = {s: r for s, r in rows_of(study, 0, {}).items() if s.cell in wanted and s.rho is None}
    results.add("ours", 0, rows, {})
    (teacher,) = results.summarize()["teachers"]
    assert {group["name"] for group in teacher["groups"]} == {"ls"}
    assert {claim["verdict"] for claim in teacher["claims"]} == {"undecided", "not measured"}


def test_blocks_per_clip_are_those_of_the_levels_that_a_sampler_visits():
    depth, steps = 28, 4
    budget = LayerBudget.from_distribution(KarrasNoise(), PrestoLSBudget(), depth=depth)
    card = ModelCard({"dim": 8, "depth": depth}, 4, 8, 1.0, [], [], {}, {}, budget.to_dict())
    model = artifact("c" * 16, "generator", model=card.to_dict())
    full = artifact("e" * 16, "generator", model={**card.to_dict(), "layer_budget": None})
    # few-step levels are at u = 0, 1/4, 1/2, 3/4 from the top: in the first four of five equally likely bins
    assert count_blocks(StudySystem(S, steps), model, ScheduleConfig()) == sum((16, 20, 20, 28))
    assert count_blocks(StudySystem(S, steps), full, ScheduleConfig()) == steps * depth
    guided = StudySystem("teacher", 40, sampler=BaseSampler(steps=40, guidance_scale=2.0))
    assert count_blocks(guided, full, ScheduleConfig()) == 80 * depth
