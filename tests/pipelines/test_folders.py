"""Folders of audio as systems: which clips they give, with which prompts, and that nothing is dropped unmentioned."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from pipelines.evaluate.folder_prompts import captions_from_names, match_prompts
from pipelines.evaluate.folders import FolderClips, read_folder_system
from pipelines.storage.filesystem import open_folder
from pipelines.storage.local_s3 import Server
from presto_core.artifacts.store import write_bytes
from presto_core.errors import UserError

RATE_HZ = 16000
SECONDS = 0.5
LENGTH = 8000


def make_music(*, seconds: float = 1.0, channels: int = 1, seed: int = 0, rate_hz: int = RATE_HZ) -> np.ndarray:
    """Return [N, A] of smooth noise, exact in 16 bit."""
    rng = np.random.default_rng(seed)
    wave = np.convolve(rng.standard_normal(round(seconds * rate_hz)), np.hanning(9), mode="same")
    offsets = 1 + np.arange(channels)
    return np.round(3000 * wave[:, None] / offsets).clip(-32768, 32767) / 32768


def write_clip(folder: Path, name: str, audio: np.ndarray, *, rate_hz: int = RATE_HZ, subtype: str | None = None):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / name, audio, rate_hz, subtype=subtype)


def read_system(
    folder: Path | str,
    *,
    channels: int = 1,
    count: int | None = None,
    prompts: tuple[str, ...] = (),
    seconds: float = SECONDS,
) -> FolderClips:
    return read_folder_system(
        str(folder), name="musicgen", seconds=seconds, rate_hz=RATE_HZ, channels=channels, count=count, prompts=prompts
    )


# --- which clips


def test_clips_are_the_starts_of_the_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    audio = {name: make_music(seed=i) for i, name in enumerate(("b.wav", "a.flac", "deep/c.wav"))}
    for name, samples in audio.items():
        write_clip(tmp_path, name, samples)
    (tmp_path / "notes.txt").write_text("no audio")
    clips = read_system(tmp_path)
    assert clips.names == ("a.flac", "b.wav", "deep/c.wav")
    assert len(clips) == 3
    assert (clips.skipped, clips.notes) == ({}, ())
    expected = np.stack([audio[name][:LENGTH].T for name in clips.names])
    np.testing.assert_array_equal(clips.read_audio(0, 3), expected)
    np.testing.assert_array_equal(clips.read_audio(1, 1), expected[1:2])
    np.testing.assert_array_equal(clips.read_audio(2, 5), expected[2:])
    assert clips.read_audio(3, 2).shape == (0, 1, LENGTH)


def test_workers_read_the_same_clips_from_a_pickled_system(tmp_path: Path) -> None:
    write_clip(tmp_path, "a.wav", make_music())
    clips = read_system(tmp_path)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(clips)).read_audio(0, 1), clips.read_audio(0, 1))


def test_only_as_many_clips_as_other_systems_have_and_the_rest_is_counted(tmp_path: Path) -> None:
    for number in range(5):
        write_clip(tmp_path, f"{number}.wav", make_music(seed=number))
    (tmp_path / "1.wav").write_bytes(b"damaged")
    clips = read_system(tmp_path, count=3)
    assert clips.names == ("0.wav", "2.wav", "3.wav")
    assert any("3 files are used" in note and "1 more" in note for note in clips.notes)


def test_files_with_prompts_of_the_evaluation_come_before_others_when_not_all_are_needed(tmp_path: Path) -> None:
    for name in ("1_techno.wav", "2_jazz.wav", "3_solo piano.wav", "4_jazz.wav"):
        write_clip(tmp_path, name, make_music())
    assert read_system(tmp_path, count=2, prompts=("solo piano", "jazz")).names == ("2_jazz.wav", "3_solo piano.wav")
    clips = read_system(tmp_path, count=3, prompts=("solo piano", "jazz"))
    assert clips.names == ("1_techno.wav", "2_jazz.wav", "3_solo piano.wav")
    assert clips.prompts == (None, 1, 0)


def test_fewer_clips_than_other_systems_have_is_a_note_with_both_numbers(tmp_path: Path) -> None:
    write_clip(tmp_path, "a.wav", make_music())
    (note,) = read_system(tmp_path, count=300).notes
    assert note.startswith("musicgen: ")
    assert "1 clips" in note
    assert "300" in note
    assert read_system(tmp_path, count=1).notes == ()


# --- conversion to the report's format


def test_another_sample_rate_is_resampled_and_a_lower_one_is_noted(tmp_path: Path) -> None:
    high, low = make_music(rate_hz=48000), make_music(rate_hz=8000, seed=1)
    write_clip(tmp_path, "high.wav", high, rate_hz=48000)
    write_clip(tmp_path, "low.wav", low, rate_hz=8000)
    clips = read_system(tmp_path)
    first, second = clips.read_audio(0, 2)
    np.testing.assert_array_equal(first, soxr.resample(high.astype(np.float32), 48000, RATE_HZ)[:LENGTH].T)
    np.testing.assert_array_equal(second, soxr.resample(low.astype(np.float32), 8000, RATE_HZ)[:LENGTH].T)
    (note,) = clips.notes
    assert "1 of 2" in note
    assert "8000 Hz" in note


def test_stereo_in_a_mono_report_is_mixed_and_mono_in_a_stereo_report_is_copied_and_both_are_counted(
    tmp_path: Path,
) -> None:
    stereo, mono = make_music(channels=2), make_music(seed=1)
    write_clip(tmp_path, "a.wav", stereo)
    write_clip(tmp_path, "b.wav", mono)
    as_mono, as_stereo = read_system(tmp_path, channels=1), read_system(tmp_path, channels=2)
    np.testing.assert_allclose(as_mono.read_audio(0, 1)[0, 0], stereo[:LENGTH].mean(axis=1), atol=1e-7)
    audio = as_stereo.read_audio(0, 2)
    np.testing.assert_array_equal(audio[0], stereo[:LENGTH].T)
    np.testing.assert_array_equal(audio[1], mono[:LENGTH].T.repeat(2, axis=0))
    assert [note for note in as_mono.notes if "1 of 2 files are mixed" in note]
    assert [note for note in as_stereo.notes if "1 of 2 files are mono" in note]


def test_files_of_equal_content_are_all_used_and_counted(tmp_path: Path) -> None:
    """A system that repeats itself must not look better for it."""
    for name in ("a.wav", "b.wav", "c.wav"):
        write_clip(tmp_path, name, make_music())
    clips = read_system(tmp_path)
    assert len(clips) == 3
    assert "2 of 3 files have the same content" in clips.notes[0]


@pytest.mark.services
def test_a_folder_on_s3_gives_the_same_clips(tmp_path: Path, object_store: Server) -> None:
    write_clip(tmp_path, "a.wav", make_music())
    write_clip(tmp_path, "deep/b.flac", make_music(seed=1))
    write_clip(tmp_path, "short.wav", make_music(seconds=0.1))
    (tmp_path / "a.txt").write_text("a slow waltz")
    rows = [{"file": name} for name in ("a.wav", "deep/b.flac", "short.wav", "missing.wav")]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    remote = open_folder("s3://latents/folders-test")
    for path in tmp_path.rglob("*.*"):
        write_bytes(remote, path.relative_to(tmp_path).as_posix(), path.read_bytes())
    local, stored = read_system(tmp_path), read_system(remote.uri)
    assert stored.names == local.names == ("a.wav", "deep/b.flac")
    assert stored.captions == local.captions == ("a slow waltz", "b")
    assert list(stored.skipped) == list(local.skipped) == ["missing.wav", "short.wav"]
    np.testing.assert_array_equal(stored.read_audio(0, 2), local.read_audio(0, 2))


# --- unusable files


@pytest.fixture
def mixed_folder(tmp_path: Path) -> Path:
    """One good clip among files that cannot be used."""
    write_clip(tmp_path, "good.wav", make_music())
    write_clip(tmp_path, "short.wav", make_music(seconds=0.4))
    spoiled = make_music()
    spoiled[100] = np.nan
    write_clip(tmp_path, "nan.wav", spoiled, subtype="FLOAT")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.mp3").write_text("this is no music\n" * 40)
    write_clip(tmp_path, "whole.ogg", make_music())
    head = (tmp_path / "whole.ogg").read_bytes()[:200]
    (tmp_path / "whole.ogg").unlink()
    (tmp_path / "junk.ogg").write_bytes(head + np.random.default_rng(0).bytes(4000))
    write_clip(tmp_path, "bad sidecar.wav", make_music())
    (tmp_path / "bad sidecar.json").write_text("[]")
    return tmp_path


def test_unusable_files_are_skipped_counted_and_each_has_a_reason(mixed_folder: Path) -> None:
    clips = read_system(mixed_folder)
    assert clips.names == ("good.wav",)
    assert set(clips.skipped) == {"short.wav", "nan.wav", "empty.wav", "text.mp3", "junk.ogg", "bad sidecar.wav"}
    assert "6400 of 8000 samples" in clips.skipped["short.wav"]
    assert "NaN" in clips.skipped["nan.wav"]
    assert "zero bytes" in clips.skipped["empty.wav"]
    assert "sidecar" in clips.skipped["bad sidecar.wav"]
    assert all(clips.skipped.values())
    (note,) = clips.notes
    assert "6 of 7 files are skipped" in note
    assert "bad sidecar.wav (" in note
    assert "3 more" in note


def test_a_folder_without_a_usable_file_is_one_error_that_names_the_setting_and_the_reason(mixed_folder: Path) -> None:
    (mixed_folder / "good.wav").unlink()
    with pytest.raises(UserError, match=r"evaluate\.folders\.musicgen: none of 6 files .*bad sidecar\.wav \("):
        read_system(mixed_folder)


def test_an_empty_or_missing_folder_or_a_file_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.wav").write_bytes(b"")
    for name, problem in (("empty", "no audio"), ("missing", "does not exist"), ("file.wav", "not a folder")):
        with pytest.raises(UserError, match=rf"evaluate\.folders\.musicgen: .*{name}.*{problem}"):
            read_system(tmp_path / name)


def test_damage_behind_the_clip_does_not_matter(tmp_path: Path) -> None:
    audio = make_music(seconds=80, seed=1)
    write_clip(tmp_path, "a.flac", audio)
    content = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(content[: len(content) * 3 // 4])
    np.testing.assert_array_equal(read_system(tmp_path).read_audio(0, 1)[0], audio[:LENGTH].T)


def test_a_file_that_changes_before_it_is_read_is_one_error(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        write_clip(tmp_path, name, make_music())
    clips = read_system(tmp_path)
    (tmp_path / "a.wav").write_bytes(b"")
    (tmp_path / "b.wav").unlink()
    for start, name in enumerate(clips.names):
        with pytest.raises(UserError, match=rf"evaluate\.folders\.musicgen: {name} in .* has changed"):
            clips.read_audio(start, 1)


# --- prompts


def test_a_manifest_selects_the_files_and_gives_their_prompts(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav", "c.wav"):
        write_clip(tmp_path, name, make_music())
    rows = [{"file": "c.wav", "caption": "Solo piano, slow."}, {"file": "a.wav"}, {"file": "missing.wav"}]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    clips = read_system(tmp_path)
    assert clips.names == ("a.wav", "c.wav")
    assert clips.captions == ("a", "Solo piano, slow.")
    assert list(clips.skipped) == ["missing.wav"]
    assert "does not exist" in clips.skipped["missing.wav"]


def test_a_manifest_that_lists_a_file_twice_or_is_damaged_is_one_error(tmp_path: Path) -> None:
    write_clip(tmp_path, "a.wav", make_music())
    manifest = tmp_path / "manifest.csv"
    for text, problem in (("file\na.wav\na.wav\n", "appears twice"), ("name\na.wav\n", "no column 'file'")):
        manifest.write_text(text)
        with pytest.raises(UserError, match=rf"evaluate\.folders\.musicgen: .*{problem}"):
            read_system(tmp_path)


def test_a_sidecar_gives_the_prompt_before_the_file_name_does(tmp_path: Path) -> None:
    for name in ("0001.wav", "0002.wav", "jazz_trio.wav"):
        write_clip(tmp_path, name, make_music())
    (tmp_path / "0001.txt").write_text("a slow waltz\n")
    (tmp_path / "0002.json").write_text(json.dumps({"caption": "fast techno", "seed": 1}))
    assert read_system(tmp_path).captions == ("a slow waltz", "fast techno", "jazz trio")


@pytest.mark.parametrize(
    ("files", "captions"),
    [
        (["solo piano, slow.wav"], ["solo piano, slow"]),
        (["01_solo_piano.wav", "2-fast--techno.flac"], ["solo piano", "fast techno"]),
        (["x/007 jazz.wav", "8. blues.wav"], ["jazz", "blues"]),
        (["808 drums.wav", "solo piano.wav"], ["808 drums", "solo piano"]),
        (["1.wav", "2.wav"], ["1", "2"]),
        (["solo-piano-4steps-seed0-0a1b2c3d.wav", "ピアノ-1steps-seed12-00000000-2.wav"], ["solo piano", "ピアノ"]),
        (["90s techno.wav"], ["90s techno"]),
        ([], []),
    ],
)
def test_file_names_become_prompts(files: list[str], captions: list[str]) -> None:
    assert captions_from_names(files) == captions


def test_prompts_match_whatever_their_case_and_punctuation_and_each_is_used_once() -> None:
    prompts = ["Solo piano, slow", "techno", "TECHNO!", "Žluťoučký kůň"]
    captions = ["techno", "solo_piano slow", "Techno", "techno", "žluťoučký KŮŇ", "solo piano"]
    assert match_prompts(captions, prompts) == [1, 0, 2, None, 3, None]
    assert match_prompts(["a"], []) == [None]
    assert match_prompts([], ["a"]) == []


def test_a_folder_generated_from_the_evaluations_prompts_lines_up_with_them(tmp_path: Path) -> None:
    for name in ("0_techno, fast.wav", "1_solo piano.wav", "2_something else.wav"):
        write_clip(tmp_path, name, make_music())
    clips = read_system(tmp_path, prompts=("solo piano", "Techno, fast", "jazz"))
    assert clips.prompts == (1, 0, None)
    assert any("1 of 3 clips have a prompt that the evaluation does not have" in note for note in clips.notes)
