"""The corpus folder: its plan, and a cached, resumable, reproducible build."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from pipelines.corpus.build import _check_disk, build_corpus
from pipelines.corpus.clips import WORDINGS, file_sha256, make_clip, write_flac
from pipelines.corpus.folder import read_manifest
from pipelines.corpus.plan import CorpusSettings, PieceSpec, make_piece, plan_clips
from pipelines.corpus.render import TARGET_RMS_DBFS
from pipelines.corpus.styles import STYLES

SMALL: dict[str, Any] = {
    "minutes": 0.6, "clip_seconds": 6.0, "validation_tracks": 1, "test_tracks": 3, "test_seconds": 5.0, "seed": 3
}  # fmt: skip


# the plan


def group_by_split(specs: list[PieceSpec]) -> dict[str, list[PieceSpec]]:
    return {split: [s for s in specs if s.split == split] for split in ("train", "validation", "test")}


def test_the_plan_has_the_requested_clips_of_each_split_from_all_collections() -> None:
    specs = group_by_split(plan_clips(CorpusSettings(minutes=240.0)))
    for split, clips, seconds in (("train", 480, 30.0), ("validation", 60, 12.5), ("test", 300, 12.5)):
        mine = specs[split]
        assert Counter(s.collection for s in mine) == {"composed": clips / 2, "bach": clips / 4, "ryan": clips / 4}
        assert {s.clip_seconds for s in mine} == {seconds}
        styles = Counter(s.work for s in mine if s.collection == "composed")
        assert set(styles) == set(STYLES)
        assert max(styles.values()) - min(styles.values()) <= 1


@pytest.mark.parametrize("minutes", [3.0, 60.0, 960.0])
@pytest.mark.parametrize("tracks", [(60, 300), (4, 4), (0, 1000)])
@pytest.mark.parametrize("real_fraction", [0.0, 0.5, 1.0])
def test_no_composition_is_in_two_splits(minutes: float, tracks: tuple[int, int], real_fraction: float) -> None:
    settings = CorpusSettings(
        minutes=minutes, validation_tracks=tracks[0], test_tracks=tracks[1], real_fraction=real_fraction
    )
    specs = plan_clips(settings)
    split_of: dict[str, str] = {}
    assert all(split_of.setdefault(s.composition_id, s.split) == s.split for s in specs)
    assert len({s.piece_id for s in specs}) == len({s.seed for s in specs}) == len(specs) == sum(tracks) + 2 * minutes


def test_the_test_split_of_the_defaults_has_at_least_250_compositions() -> None:
    test = group_by_split(plan_clips(CorpusSettings()))["test"]
    assert len(test) == 300
    assert len({s.composition_id for s in test}) >= 250


def test_a_longer_plan_begins_with_the_shorter_one() -> None:
    shorter = plan_clips(CorpusSettings(minutes=60.0))
    assert plan_clips(CorpusSettings(minutes=240.0))[: len(shorter)] == shorter
    assert plan_clips(CorpusSettings(minutes=10.0, seed=1)) != plan_clips(CorpusSettings(minutes=10.0))


def test_a_plan_longer_than_the_repertoire_repeats_it_differently() -> None:
    bach = [s for s in plan_clips(CorpusSettings(minutes=600.0, real_fraction=1.0)) if s.collection == "bach"]
    twice = next(work for work, times in Counter(s.work for s in bach).items() if times > 1)
    first, second = [make_piece(s) for s in bach if s.work == twice][:2]
    assert first.parts != second.parts


@pytest.mark.parametrize(
    "settings",
    [{"minutes": 0}, {"clip_seconds": 1.0}, {"test_seconds": 600}, {"test_tracks": -1}, {"real_fraction": 1.5}],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        CorpusSettings(**settings)


@pytest.mark.parametrize("collection", ["composed", "bach", "ryan"])
def test_a_test_clip_is_the_beginning_middle_or_end_of_a_piece_as_long_as_a_training_clip(
    collection: str, tmp_path: Path
) -> None:
    specs = [s for s in group_by_split(plan_clips(CorpusSettings()))["test"] if s.collection == collection]
    assert Counter(s.start_seconds for s in specs) == dict.fromkeys((0.0, 8.75, 17.5), len(specs) / 3)
    assert {s.piece_seconds for s in specs} == {30.0}
    spec = next(s for s in specs if s.start_seconds == 8.75)
    read = {}
    for name, wanted in {"clip": spec, "whole": replace(spec, start_seconds=0.0, clip_seconds=30.0)}.items():
        (tmp_path / name / "audio").mkdir(parents=True)
        (tmp_path / name / "rows").mkdir()
        row = make_clip(tmp_path / name, wanted).row
        assert row is not None
        read[name] = soundfile.read(tmp_path / name / row["file"], dtype="int16")[0]
    assert len(read["clip"]) == 12.5 * 44_100
    start = round(8.75 * 44_100)
    np.testing.assert_array_equal(read["clip"], read["whole"][start : start + len(read["clip"])])


# the build


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "small"
    progress: list[tuple[int, int]] = []
    summary = build_corpus(folder, **SMALL, workers=1, on_progress=lambda done, total: progress.append((done, total)))
    assert (summary.clips, summary.made, summary.skipped, summary.is_cached) == (10, 10, 0, False)
    assert progress == [(done, 10) for done in range(11)]
    return folder


@pytest.fixture
def copy(corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(corpus, tmp_path / "copy"))


def test_the_manifest_describes_every_clip(corpus: Path) -> None:
    rows = read_manifest(corpus)
    record = json.loads((corpus / "corpus.json").read_text())
    assert Counter(row["split"] for row in rows) == {"train": 6, "validation": 1, "test": 3}
    assert record["totals"]["splits"] == {
        "test": {"clips": 3, "minutes": 0.25, "compositions": 3},
        "validation": {"clips": 1, "minutes": 5 / 60, "compositions": 1},
        "train": {"clips": 6, "minutes": 0.6, "compositions": 6},
    }
    assert record["totals"]["clips"] == len(rows) == 10
    assert "GPL-2" in record["licences"]["soundfont"]
    for row, spec in zip(rows, plan_clips(CorpusSettings(**SMALL)), strict=True):
        assert row["composition_id"] == spec.composition_id
        assert f"{row['tempo_bpm']} bpm" in row["caption"]
        assert row["key"] in row["caption"]
        assert all(row[name] for name in ("title", "composer", "source", "licence", "ensemble"))


def test_wordings_differ_and_leave_out_what_people_leave_out(corpus: Path) -> None:
    rows = read_manifest(corpus)
    wordings = [text for row in rows for text in row["captions"]]
    assert len(set(wordings)) > 0.9 * len(wordings)
    assert all(len(row["captions"]) == WORDINGS for row in rows)
    for row in rows:
        for text in row["captions"]:
            assert row["ensemble"].lower() in text.lower() or row["genre"].lower() in text.lower()
            assert not (numbers := set(re.findall(r"\d+ bpm", text))) or numbers == {f"{row['tempo_bpm']} bpm"}
            assert not (keys := set(re.findall(r"[A-G][b#]? (?:major|minor)", text))) or keys == {row["key"]}
    for attribute, share in ((" bpm", 0.36), (" m(aj|in)or", 0.6)):  # 0.6 have a tempo, 3 in 5 of them its number
        tolerance = 4 * (share * (1 - share) / len(wordings)) ** 0.5
        stated = sum(bool(re.search(attribute, text)) for text in wordings)
        assert stated / len(wordings) == pytest.approx(share, abs=tolerance)


def test_every_clip_is_sound(corpus: Path) -> None:
    for row in read_manifest(corpus):
        audio, rate = soundfile.read(corpus / row["file"], dtype="float32")
        info = soundfile.info(corpus / row["file"])
        seconds = 6 if row["split"] == "train" else 5
        assert (info.format, info.subtype, rate, audio.shape) == ("FLAC", "PCM_16", 44_100, (seconds * 44_100,))
        assert row["duration_seconds"] == seconds
        assert np.isfinite(audio).all()
        assert 20 * np.log10(np.sqrt(np.mean(audio**2))) == pytest.approx(TARGET_RMS_DBFS, abs=1.5)
        assert np.abs(audio).max() < 0.999
        assert file_sha256(corpus / row["file"]) == row["sha256"]


def test_a_second_build_does_nothing(corpus: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    calls: list[int] = []
    summary = build_corpus(corpus, **{**SMALL, "test_seconds": 5}, on_progress=lambda done, total: calls.append(done))
    assert summary.is_cached
    assert (summary.made, summary.reused, calls) == (0, 10, [])
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before


def test_an_interrupted_build_resumes_to_the_same_bits(copy: Path) -> None:
    manifest = (copy / "manifest.jsonl").read_bytes()
    rows = read_manifest(copy)
    (copy / "manifest.jsonl").unlink()
    (copy / rows[0]["file"]).unlink()
    with (copy / rows[1]["file"]).open("r+b") as file:
        file.truncate(1000)
    (copy / "audio" / ".old.flac.1.partial").touch()
    summary = build_corpus(copy, **SMALL, workers=1)
    assert (summary.made, summary.reused) == (2, 8)
    assert (copy / "manifest.jsonl").read_bytes() == manifest
    assert not list(copy.glob("*/.*.partial"))


def test_processes_make_the_same_bits_as_one(corpus: Path, tmp_path: Path) -> None:
    build_corpus(tmp_path / "two", **SMALL, workers=2)
    assert (tmp_path / "two" / "manifest.jsonl").read_bytes() == (corpus / "manifest.jsonl").read_bytes()


def test_a_folder_with_something_else_is_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"settings\.seed=3.*4"):
        build_corpus(copy, **{**SMALL, "seed": 4})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(ValueError, match=r"corpus\.json"):
        build_corpus(tmp_path / "other", **SMALL)


def test_too_little_disk_is_refused_before_the_first_clip(tmp_path: Path) -> None:
    endless = replace(plan_clips(CorpusSettings(**SMALL))[0], clip_seconds=1e12)
    with pytest.raises(OSError, match="60000000020"):
        _check_disk(tmp_path, [endless])


def _write_beyond_the_limit(path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 300_000).astype(np.float32)
    try:
        write_flac(path, noise)
    except OSError as error:
        os._exit(7 if path.name in str(error) else 1)
    os._exit(0)


def test_a_write_that_fails_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=_write_beyond_the_limit, args=(tmp_path / "clip.flac",)
    )
    process.start()
    process.join()
    assert process.exitcode == 7
    assert not list(tmp_path.iterdir())
