"""Checks of a promotion that compare clips: enough samples, noise floor, teacher, champion; from made-up reports."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines.registry import names
from pipelines.registry.catalog import Version
from pipelines.registry.comparison_checks import (
    check_noise_floor,
    check_samples,
    compare_with_champion,
    compare_with_teacher,
)
from pipelines.registry.model_comparison import Evidence, NotComparableError, TooFewTracksError
from pipelines.registry.report_samples import FLOOR, NOISE, REFERENCE, ReportSamples, is_same_model
from pipelines.tracking.tags import ARTIFACT_ID, KIND
from presto_core.artifacts.manifest import Artifact
from presto_core.config.promotion import PromoteConfig
from presto_core.models.pretrained import make_pretrained_uri
from tests.support.simulated_models import make_arrays

DIM = 6
CANDIDATE, TEACHER, CHAMPION, DATA = "c" * 16, "7" * 16, "a" * 16, "d" * 16


def make_version(artifact_id: str = CANDIDATE, *, kind: str = "generator", teacher: str = TEACHER) -> Version:
    tags = {ARTIFACT_ID: artifact_id, KIND: kind, names.CONTENT: artifact_id, f"{names.MEASURED}report": "e" * 16}
    return Version("m", 1 + (artifact_id == CHAMPION), (), tags | ({f"{names.PARENT}teacher": teacher}), "", 0)


def make_samples(
    offs: dict[str, float], *, clips: int = 200, real: int = 200, noise: float = 2.0, floor_off: float = 0.0
) -> ReportSamples:
    """A report of models by id, each off real music by so many standard deviations; the first is the teacher."""
    rng = np.random.default_rng(11)
    other = rng.standard_normal((real, 1, DIM)) + floor_off
    arrays = make_arrays(REFERENCE, rng.standard_normal((real, 1, DIM)))
    arrays |= make_arrays(FLOOR.partition("/")[2], other, split="train", first_track=10**4)
    arrays |= make_arrays(NOISE.partition("/")[2], other + noise, split="train", first_track=10**4)
    roles = {"teacher" if not number else f"compared_{number}": of for number, of in enumerate(offs)}
    for role, artifact_id in roles.items():
        arrays |= make_arrays(f"{role} 4", rng.standard_normal((clips, 1, DIM)) + offs[artifact_id])
    result = {
        "systems": [{"name": f"{role} 4", "model": role, "chosen": True} for role in roles],
        "embedding": {"name": "made-up"},
        "fitness": {"made-up": {"mmd": {"state": "passed", "reason": ""}}},
    }
    manifest = {"parents": roles | {"dataset": DATA}, "report": {"measure": "made-up"}}
    return ReportSamples(Artifact("e" * 16, "report", "nowhere", manifest), result, arrays, "validation")


def make_evidence(
    samples: ReportSamples, *, candidate: Version | None = None, champion: Version | None = None, **limits: Any
) -> Evidence:
    evidence = Evidence(None, candidate or make_version(), champion, PromoteConfig(**limits))
    evidence.samples = samples  # as if read from its report
    return evidence


def find_failures(evidence: Evidence) -> set[str]:
    checks = (check_samples, check_noise_floor, compare_with_teacher, compare_with_champion)
    return {row.name for row in (check(evidence) for check in checks) if not row.passed}


@pytest.mark.parametrize(
    ("off", "clips", "failed"),
    [
        (0.3, 200, set()),  # better than its teacher
        (0.5, 400, set()),  # as good
        (1.0, 200, {"against teacher"}),  # worse
        (0.5, 12, {"samples", "against teacher"}),  # as good, on too few clips to know
        (0.62, 60, {"samples", "against teacher"}),  # 1.5 times as far
    ],
)
def test_a_version_must_be_shown_not_to_be_worse_than_its_teacher(off: float, clips: int, failed: set[str]):
    samples = make_samples({TEACHER: 0.5, CANDIDATE: off}, clips=clips, real=max(clips, 60))
    assert find_failures(make_evidence(samples)) - {"noise floor"} == failed
    assert find_failures(make_evidence(samples, max_teacher_ratio=None, max_floor_share=None)) == set()


def test_a_version_that_is_worse_by_little_is_refused_on_many_clips():
    samples = make_samples({TEACHER: 0.5, CANDIDATE: 0.58}, clips=1500, real=1500)  # about 1.33 times its MMD
    check = compare_with_teacher(make_evidence(samples))
    assert (check.passed, check.numbers["outcome"]) == (False, "worse")
    assert compare_with_teacher(make_evidence(samples, worse_teacher_ratio=1.5)).passed


def test_too_few_samples_are_refused_with_the_number_that_would_do_and_that_number_does():
    few = check_samples(make_evidence(make_samples({TEACHER: 0.5, CANDIDATE: 0.5}, clips=80, real=80)))
    assert not few.passed
    assert (few.numbers["clips"], few.numbers["tracks"], few.numbers["reference_tracks"]) == (80, 80, 80)
    needed = few.numbers["needed_clips"]
    assert 80 < needed < 2000
    for part in (f"evaluate.validation_samples={needed}", TEACHER, CANDIDATE, "ingest.validation_fraction"):
        assert part in few.fix
    more = make_samples({TEACHER: 0.5, CANDIDATE: 0.5}, clips=needed, real=needed)
    assert check_samples(make_evidence(more)).passed


def test_few_tracks_are_one_error_with_a_command_however_many_clips():
    samples = make_samples({TEACHER: 0.5, CANDIDATE: 0.5})
    samples.arrays[f"validation/{REFERENCE}/tracks"] %= 2
    with pytest.raises(TooFewTracksError, match="2") as caught:
        check_samples(make_evidence(samples))
    assert "presto evaluate" in caught.value.fix


@pytest.mark.parametrize(
    ("how", "fitness", "part"),
    [
        ({"noise": 0.1}, None, "with noise"),  # noise is hardly worse than music: the embedding tells nothing
        ({"floor_off": 0.45}, None, "teacher 4"),  # the splits hold different music
        ({"real": 12}, None, ""),
        ({}, {"state": "failed", "reason": "noise is better than real music"}, "noise is better"),
        ({}, {}, "not tested"),
    ],
)
def test_a_report_that_tells_nothing_is_refused(how: dict[str, Any], fitness: Any, part: str):
    samples = make_samples({TEACHER: 0.5, CANDIDATE: 0.3}, **how)
    if fitness is not None:
        samples.result["fitness"]["made-up"]["mmd"] = fitness
    check = check_noise_floor(make_evidence(samples))
    assert not check.passed
    assert part in check.found + check.wanted
    assert check_noise_floor(make_evidence(samples, max_floor_share=None)).passed


def test_a_version_as_close_as_real_music_needs_no_ratio_to_a_teacher_as_good():
    samples = make_samples({TEACHER: 0.0, CANDIDATE: 0.0}, clips=600, real=600)
    evidence = make_evidence(samples)
    assert evidence.with_teacher.outcome == "undecided"
    assert find_failures(evidence) == set()
    assert check_noise_floor(evidence).numbers["like_real_music"]
    few = make_samples({TEACHER: 0.0, CANDIDATE: 0.0}, clips=12, real=30)  # touches it for lack of clips alone
    assert {"samples", "against teacher"} <= find_failures(make_evidence(few))


def test_a_teacher_is_compared_with_the_champion_alone():
    samples = make_samples({CANDIDATE: 0.3, CHAMPION: 0.5})
    teacher, champion = make_version(kind="teacher", teacher="8" * 16), make_version(CHAMPION, kind="teacher")
    assert find_failures(make_evidence(samples, candidate=teacher)) == set()
    assert find_failures(make_evidence(samples, candidate=teacher, champion=champion)) == set()
    worse = make_samples({CANDIDATE: 0.7, CHAMPION: 0.5})
    assert find_failures(make_evidence(worse, candidate=teacher, champion=champion)) == {"against champion"}
    command = make_evidence(worse, candidate=teacher, champion=champion).describe_evaluation(with_champion=True)
    assert f"inputs.teacher={CANDIDATE}" in command
    assert f"inputs.teacher={CHAMPION}" in command


def test_layers_are_compared_as_generators_are():
    samples = make_samples({TEACHER: 0.5, CANDIDATE: 1.0})
    assert find_failures(make_evidence(samples, candidate=make_version(kind="layers"))) == {"against teacher"}


def test_a_report_with_another_teacher_does_not_decide():
    samples = make_samples({"9" * 16: 0.5, CANDIDATE: 0.3})
    with pytest.raises(NotComparableError, match="9" * 16) as caught:
        compare_with_teacher(make_evidence(samples))
    assert f"inputs.teacher={TEACHER}" in caught.value.fix
    assert not check_samples(make_evidence(samples)).numbers.get("needed_clips")


def test_a_version_without_a_teacher_among_its_parents_is_refused():
    orphan = replace(make_version(), tags={k: v for k, v in make_version().tags.items() if "teacher" not in k})
    samples = make_samples({TEACHER: 0.5, CANDIDATE: 0.3})
    assert find_failures(make_evidence(samples, candidate=orphan)) == {"against teacher"}
    assert find_failures(make_evidence(samples, candidate=orphan, max_teacher_ratio=None)) == set()


def test_a_teacher_of_the_package_is_found_by_its_id_and_by_that_of_its_source():
    manifest = _read_shipped_manifest("presto-tiny-teacher")
    shipped, source = manifest["id"], manifest["export"]["source"]
    assert is_same_model(shipped, source)
    assert not is_same_model(shipped, TEACHER)
    samples = make_samples({shipped: 0.5, CANDIDATE: 1.0})
    evidence = make_evidence(samples, candidate=make_version(teacher=source))
    assert find_failures(evidence) == {"against teacher"}
    assert "inputs.teacher=presto-tiny-teacher " in evidence.describe_evaluation()


def _read_shipped_manifest(name: str) -> dict[str, Any]:
    from pipelines.storage.filesystem import open_folder
    from presto_core.artifacts.manifest import read_artifact

    return dict(read_artifact(open_folder(make_pretrained_uri(name))).manifest)


def test_numbers_are_json_without_infinities():
    samples = make_samples({TEACHER: 0.0, CANDIDATE: 0.5}, clips=30, real=30)
    for check in (check_samples, check_noise_floor, compare_with_teacher):
        json.dumps(check(make_evidence(samples)).to_dict(), allow_nan=False)


def test_the_champion_itself_is_not_compared():
    champion = make_version()
    evidence = make_evidence(make_samples({TEACHER: 0.2, CANDIDATE: 1.0}), champion=champion)
    assert find_failures(evidence) == set()
