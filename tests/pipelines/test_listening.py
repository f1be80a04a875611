"""Listening tests: what `build` puts into the page, and what it keeps out of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from pipelines.evaluate.listening.answers import read_key
from pipelines.evaluate.listening.build import TestOptions, design_test, render_test, write_test
from pipelines.evaluate.listening.clip_audio import encode_flac, make_low_anchor, measure_treble_share, read_clip
from pipelines.evaluate.listening.material import read_material, select_systems
from presto_core.audio.loudness import integrated_loudness
from presto_core.errors import UserError
from tests.support.example_report import HOSTILE_CAPTION, make_report_folder

RATE_HZ = 44100


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_report_folder(tmp_path_factory.mktemp("report"), seconds=1.0)


def read_parameters(page: str) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="test">(.*?)</script>', page, re.DOTALL)
    assert match
    parameters: dict[str, Any] = json.loads(match[1])
    return parameters


def edit_report(report: Path, target: Path, **changes: Any) -> Path:
    """A copy of the report's text with other fields, beside links to its audio."""
    target.mkdir()
    (target / "audio").symlink_to(report / "audio")
    content = json.loads((report / "report.json").read_text()) | changes
    (target / "report.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return target


@pytest.mark.parametrize("kind", ["pairs", "mushra"])
def test_same_report_and_seed_give_the_same_bytes_and_another_seed_others(report: Path, tmp_path: Path, kind: Any):
    written = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        page = tmp_path / f"{name}.html"
        key = write_test(design_test(report, TestOptions(kind=kind, seed=seed)), page)
        written.append((page.read_bytes(), key.read_bytes()))
    assert written[0] == written[1]
    assert written[0][0] != written[2][0]
    ids = [set(json.loads(key)["clips"]) for _, key in written]
    assert not ids[0] & ids[2]


@pytest.mark.parametrize("kind", ["pairs", "mushra"])
def test_the_page_names_no_system_and_the_key_names_all(report: Path, tmp_path: Path, kind: Any):
    test = design_test(report, TestOptions(kind=kind))
    key = read_key(write_test(test, tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    content = json.loads((report / "report.json").read_text())
    rows = content["systems"]
    hidden = {row["name"] for row in rows} | {"musicgen", "teacher", "ping_pong", "heun", report.name}
    hidden |= (
        {clip["audio"] for clip in content["clips"]}
        | {"anchor", "expected", "purpose"}
        | set(content["parents"].values())
    )
    assert [name for name in hidden if name in page] == []
    assert set(key.systems) == set(test.design.systems) == {row["name"] for row in rows if row["chosen"]}


def test_ids_cannot_be_derived_without_the_report(report: Path, tmp_path: Path):
    changed = edit_report(report, tmp_path / "other", seed=8)  # another report, with the same names and prompts
    first, second = (design_test(folder, TestOptions()).design for folder in (report, changed))
    assert set(first.clips.values()) == set(second.clips.values())
    assert not set(first.clips) & set(second.clips)
    assert first.id != second.id


def test_hostile_captions_end_no_script(report: Path):
    test = design_test(report, TestOptions(title="</script><b>&amp;@@TEST@@"))
    page = render_test(test)
    parameters = read_parameters(page)
    assert HOSTILE_CAPTION in {trial["prompt"] for trial in parameters["trials"]}
    assert parameters["title"] == "</script><b>&amp;@@TEST@@"
    assert "<script>alert" not in page
    assert "<img" not in page


def test_the_key_of_another_test_is_not_overwritten(report: Path, tmp_path: Path):
    page = tmp_path / "page.html"
    first = design_test(report, TestOptions())
    key = write_test(first, page).read_bytes()
    assert write_test(first, page).read_bytes() == key
    with pytest.raises(UserError, match=f"is the key of test {first.design.id}, needed to score it"):
        write_test(design_test(report, TestOptions(seed=1)), page)
    assert page.with_suffix(".key.json").read_bytes() == key


def test_the_page_loads_nothing_and_runs_only_its_own_script(report: Path):
    page = render_test(design_test(report, TestOptions()))
    assert "default-src 'none'" in page
    assert "unsafe-inline" not in page
    assert not re.search(r"""(src|href)=["'](?!data:)|https?://|@import|url\(""", page.split('id="clip-')[0])


def test_every_pair_meets_on_every_prompt_with_repeats_and_catch_trials(report: Path):
    design = design_test(report, TestOptions(systems=("S 4, LS 4", "LS 1"), repeats=3, catches=6)).design
    assert design.systems == ("S 4", "LS 4", "LS 1")
    purposes = [trial.purpose for trial in design.trials]
    assert {p: purposes.count(p) for p in purposes} == {"compare": 3 * 4, "repeat": 3, "catch": 6}
    met = {
        (t.prompt, frozenset(design.clips[c].system for c in t.clips)) for t in design.trials if t.purpose == "compare"
    }
    assert len(met) == 3 * 4
    for trial in design.trials:
        if trial.purpose == "catch":
            roles = {clip: design.clips[clip].role for clip in trial.clips}
            assert sorted(roles.values()) in (["anchor", "reference"], ["anchor", "system"])
            assert roles[trial.expected] != "anchor"


def test_each_mushra_trial_has_all_systems_the_reference_and_its_anchor(report: Path):
    test = design_test(report, TestOptions(kind="mushra", prompts=2))
    assert [len(trial.clips) for trial in test.design.trials] == [len(test.design.systems) + 2] * 2
    for trial in read_parameters(render_test(test))["trials"]:
        assert trial["reference"] in trial["clips"]
        assert trial["clips"] == sorted(trial["clips"])
    assert any("were limited" in note for note in test.notes)


def test_the_anchor_lacks_what_lies_above_3500_hz_and_is_as_loud():
    time_s = np.arange(2 * RATE_HZ) / RATE_HZ
    low, high = (np.sin(2 * np.pi * hz * time_s) for hz in (1000, 6000))
    samples = (0.2 * (low + high)[:, None]).astype(np.float32)
    anchor = make_low_anchor(samples, rate_hz=RATE_HZ)
    spectrum = np.abs(np.fft.rfft(anchor[:, 0]))[[2000, 12000]]  # bins of 0.5 Hz
    assert spectrum[1] / spectrum[0] < 1e-3
    before, after = (integrated_loudness([x], sample_rate_hz=RATE_HZ) for x in (samples, anchor))
    assert after == pytest.approx(before, abs=0.1)
    assert measure_treble_share(samples, rate_hz=RATE_HZ) == pytest.approx(0.5, abs=0.01)
    assert measure_treble_share(0.2 * low[:, None].astype(np.float32), rate_hz=RATE_HZ) < 1e-4


def test_clips_reach_the_page_without_loss(report: Path, tmp_path: Path):
    samples, rate_hz = read_clip(next(report.glob("audio/*.wav")))
    (tmp_path / "clip.flac").write_bytes(encode_flac(samples, rate_hz=rate_hz))
    again, rate_again = read_clip(tmp_path / "clip.flac")
    assert rate_again == rate_hz
    np.testing.assert_array_equal(again, samples)


def test_dull_clips_make_no_catch_trial_and_that_is_reported(tmp_path: Path, report: Path):
    folder = edit_report(report, tmp_path / "dull")
    (folder / "audio").unlink()
    (folder / "audio").mkdir()
    tone = 0.1 * np.sin(2 * np.pi * 440 * np.arange(RATE_HZ) / RATE_HZ)
    for path in report.glob("audio/*.wav"):
        soundfile.write(folder / "audio" / path.name, tone, RATE_HZ)
    test = design_test(folder, TestOptions())
    assert "catch" not in {trial.purpose for trial in test.design.trials}
    assert any("24 clips have next to nothing above 3.5 kHz" in note for note in test.notes)
    assert any("0 catch trials instead of 8" in note for note in test.notes)


def test_fewer_prompts_than_requested_are_a_note_and_the_default_takes_what_there_is(report: Path):
    assert not any("prompts instead of" in note for note in design_test(report, TestOptions()).notes)
    test = design_test(report, TestOptions(prompts=6))
    assert len(test.design.captions) == 4
    assert any("4 prompts instead of 6" in note for note in test.notes)


def test_a_system_with_a_comma_in_its_name_is_one_system(report: Path):
    material = read_material(report)
    clips = {("a, b", 0): report, ("c", 0): report}
    material = type(material)("x", b"", ("caption",), clips, frozenset(), ())
    assert select_systems(material, ("a, b", "c")) == ["a, b", "c"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": None}, "format 1, which keeps no prompts"),
        ({"clips": None}, "no list 'clips'"),
        ({"clips": []}, "holds no audio"),
        ({"prompts": [{"caption": 5}]}, "caption"),
        ({"clips": [{"system": "a", "prompt": 99, "audio": "audio/x.wav"}]}, "prompt 99, not 0..3"),
        ({"clips": [{"system": "a", "prompt": 0, "audio": "../../etc/passwd"}]}, "no audio file '../../etc/passwd'"),
        ({"clips": [{"system": "a", "prompt": 0, "audio": "audio/none.wav"}]}, "no audio file 'audio/none.wav'"),
    ],
)
def test_a_damaged_report_is_one_message(report: Path, tmp_path: Path, changes: dict[str, Any], message: str):
    folder = edit_report(report, tmp_path / "copy", **changes)
    if changes.get("clips") and "audio/" in changes["clips"][0]["audio"]:
        (folder / "audio").unlink()
    with pytest.raises(UserError, match=re.escape(message)):
        design_test(folder, TestOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TestOptions(systems=("LS 5",)), "no clips of system 'LS 5'; choose from real music"),
        (TestOptions(systems=("LS 4, LS 4",)), "names 'LS 4' twice"),
        (TestOptions(systems=("LS 4",)), "at least 2 systems"),
        (TestOptions(questions=("taste",)), "question 'taste' is unknown; choose from quality, prompt"),
        (TestOptions(kind="mushra", reference="studio"), "no clips of studio, the reference"),
    ],
)
def test_options_that_fit_no_report_are_one_message(report: Path, options: TestOptions, message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        design_test(report, options)


def test_audio_with_nan_is_refused(tmp_path: Path):
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), RATE_HZ, subtype="FLOAT")
    with pytest.raises(UserError, match=r"nan.wav holds NaN"):
        read_clip(tmp_path / "nan.wav")
