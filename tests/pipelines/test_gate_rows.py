"""What a report keeps for its teacher's gate: the chosen sampler on validation clips, the floor, and differences."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from pipelines.evaluate.clip_measures import CLIP_MEASURES
from pipelines.evaluate.gate_rows import cut_clips, measure_gate_rows
from pipelines.evaluate.quality import Compared, measure_validation
from pipelines.evaluate.rows import Prompts
from pipelines.evaluate.sampling import SystemSamples
from pipelines.evaluate.systems import REAL, REAL_TRAIN, EvaluatedSystem
from presto_core.config.evaluation import EvaluateConfig
from presto_core.metrics.teacher_gate import list_report_lines

CONFIG = EvaluateConfig(nearest_k=3, interval_groups=8)
BPM, KEY = 120.0, 3


def make_compared(
    name: str, split: str, count: int, *, shift: float, seed: int, steps: int = 0, **clips: Any
) -> Compared:
    """Clips of as many tracks, whose embeddings are standard normal beside a shift; all at 120 bpm and in one key."""
    rng = np.random.default_rng(seed)
    measured = dict.fromkeys(CLIP_MEASURES, 0.1) | {"clipped_samples": 0.0, "tempo_bpm": BPM, "key": KEY} | clips
    arrays = {
        "embeddings/0/mid": shift + rng.standard_normal((count, 2, 5)),
        "tags": rng.random((count, 50)),
        **{f"clip/{key}": np.full(count, value, dtype=np.float64) for key, value in measured.items()},
    }
    tracks = np.array([f"{split}-{i}" for i in range(count)], dtype=object)
    tempi, keys = np.where(np.arange(count) % 4, 60.0, BPM), np.where(np.arange(count) % 2, 7, KEY)
    prompts = Prompts(np.full(count, "piano", dtype=object), tracks, tracks, tempi, keys)
    role = "real" if steps == 0 else "teacher"
    return Compared(EvaluatedSystem(name, role, steps, steps, split=split), SystemSamples(arrays), prompts)


def make_systems(**many: Any) -> tuple[list[dict[str, Any]], list[Compared], list[Compared]]:
    """A teacher that approaches music by steps, on 24 validation clips; the floor has 20 clips."""
    compared = [
        make_compared(REAL, "test", 30, shift=0, seed=0),
        make_compared(REAL_TRAIN, "train", 20, shift=0, seed=1),
    ]
    validated = [
        make_compared(REAL, "validation", 40, shift=0, seed=2),
        make_compared("teacher 40", "validation", 24, shift=0.0, seed=3, steps=40, **many),
        make_compared("teacher 8", "validation", 24, shift=1.5, seed=3, steps=8),
        make_compared("teacher 4", "validation", 24, shift=3.0, seed=3, steps=4),
    ]
    rows = [
        {"name": one.system.name, "role": "teacher", "steps": one.system.steps, "mmd": 9.0}
        | {"validation": measure_validation(one, validated[0])}
        for one in validated[1:]
    ]
    return rows, compared, validated


def test_a_teacher_that_gains_by_steps_and_is_like_music_has_no_failing_line() -> None:
    rows, compared, validated = make_systems()
    gate = measure_gate_rows(rows, compared, validated, CONFIG)
    lines = list_report_lines({"systems": rows, "gate": gate})
    outcomes = {line.name: line.outcome for line in lines}
    assert "fail" not in outcomes.values()
    assert outcomes["40 steps better than 8"] == outcomes["8 steps better than 4"] == "pass"
    assert [name for name in outcomes if "real music's" in name] == [
        "precision / real music's",
        "density / real music's",
        "coverage / real music's",
    ]
    json.dumps(gate, allow_nan=False)


def test_rows_have_the_same_number_of_clips_and_the_teachers_is_of_the_most_steps() -> None:
    gate = measure_gate_rows(*make_systems(), CONFIG)
    assert gate["clips"] == gate["teacher"]["clips"] == gate["floor"]["clips"] == 20
    assert (gate["teacher"]["name"], gate["teacher"]["split"]) == ("teacher 40", "validation")
    assert gate["floor"]["name"] == REAL_TRAIN


def test_shares_are_those_of_the_clips_and_clipping_has_the_exact_binomial_interval() -> None:
    """A clip at 120 bpm in a key hits the fourth of its prompts that state that tempo, and the half with that key."""
    gate = measure_gate_rows(*make_systems(clipped_samples=7.0), CONFIG)
    teacher = gate["teacher"]
    assert (teacher["tempo_hits"], teacher["key_hits"], teacher["clipped"]) == (0.25, 0.5, 1.0)
    # of n clips, all: the lower end p solves p^n = 2.5 %
    assert teacher["intervals"]["clipped"] == pytest.approx([0.025 ** (1 / 20), 1.0])


def test_without_validation_clips_or_a_teacher_a_report_has_no_gate_rows() -> None:
    rows, compared, validated = make_systems()
    assert measure_gate_rows(rows, compared, [], CONFIG) == {}
    assert measure_gate_rows([], compared, validated, CONFIG) == {}


def test_without_groups_there_are_no_intervals_and_nothing_passes() -> None:
    rows, compared, validated = make_systems()
    gate = measure_gate_rows(rows, compared, validated, CONFIG.model_copy(update={"interval_groups": 0}))
    assert gate["step_differences"] == {}
    lines = {line.name: line.outcome for line in list_report_lines({"systems": rows, "gate": gate})}
    assert lines["40 steps better than 8"] == lines["coverage / real music's"] == "undecided"


def test_cutting_keeps_the_first_clips_with_their_prompts() -> None:
    whole = make_compared("teacher 4", "validation", 9, shift=0, seed=0, steps=4)
    part = cut_clips(whole, 4)
    assert (len(part.samples), len(part.prompts)) == (4, 4)
    assert np.array_equal(part.samples.embeddings(), whole.samples.embeddings()[:4])
    assert part.prompts.track.tolist() == whole.prompts.track.tolist()[:4]
