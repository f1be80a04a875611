"""The corpus folder: its plan, and a cached, resumable, reproducible build."""

from __future__ import annotations

import json
import multiprocessing
import os
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
from pipelines.corpus.clips import file_sha256, write_flac
from pipelines.corpus.folder import read_manifest
from pipelines.corpus.plan import CorpusSettings, make_piece, plan_clips
from pipelines.corpus.render import TARGET_RMS_DBFS
from pipelines.corpus.styles import STYLES

SMALL: dict[str, Any] = {"minutes": 1.0, "clip_seconds": 6.0, "held_out_fraction": 0.2, "seed": 3}


# the plan


def test_the_plan_splits_by_composition_in_the_requested_share() -> None:
    specs = plan_clips(CorpusSettings(minutes=240.0))
    sides = {split: {s.composition_id for s in specs if s.split == split} for split in ("train", "held_out")}
    assert len(specs) == 480
    assert not sides["train"] & sides["held_out"]
    assert np.mean([s.split == "held_out" for s in specs]) == pytest.approx(0.1, abs=0.005)
    assert Counter(s.collection for s in specs) == {"composed": 240, "bach": 120, "ryan": 120}
    styles = Counter(s.work for s in specs if s.collection == "composed")
    assert set(styles) == set(STYLES)
    assert max(styles.values()) - min(styles.values()) <= 2


def test_a_longer_plan_begins_with_the_shorter_one() -> None:
    assert plan_clips(CorpusSettings(minutes=240.0))[:120] == plan_clips(CorpusSettings(minutes=60.0))
    assert plan_clips(CorpusSettings(minutes=10.0, seed=1)) != plan_clips(CorpusSettings(minutes=10.0))


def test_a_plan_longer_than_the_repertoire_repeats_it_differently() -> None:
    bach = [s for s in plan_clips(CorpusSettings(minutes=600.0, real_fraction=1.0)) if s.collection == "bach"]
    twice = next(work for work, times in Counter(s.work for s in bach).items() if times > 1)
    first, second = [make_piece(s) for s in bach if s.work == twice][:2]
    assert first.parts != second.parts


@pytest.mark.parametrize(
    "settings", [{"minutes": 0}, {"clip_seconds": 1.0}, {"held_out_fraction": 0.9}, {"real_fraction": 1.5}]
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        CorpusSettings(**settings)


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
    assert Counter(row["split"] for row in rows) == {"train": 8, "held_out": 2}
    assert record["totals"]["clips"] == len(rows) == 10
    assert "GPL-2" in record["licences"]["soundfont"]
    for row, spec in zip(rows, plan_clips(CorpusSettings(**SMALL)), strict=True):
        assert row["composition_id"] == spec.composition_id
        assert f"{row['tempo_bpm']} bpm" in row["caption"]
        assert row["key"] in row["caption"]
        assert all(row[name] for name in ("title", "composer", "source", "licence", "ensemble"))


def test_every_clip_is_sound(corpus: Path) -> None:
    for row in read_manifest(corpus):
        audio, rate = soundfile.read(corpus / row["file"], dtype="float32")
        info = soundfile.info(corpus / row["file"])
        assert (info.format, info.subtype, rate, audio.shape) == ("FLAC", "PCM_16", 44_100, (6 * 44_100,))
        assert np.isfinite(audio).all()
        assert 20 * np.log10(np.sqrt(np.mean(audio**2))) == pytest.approx(TARGET_RMS_DBFS, abs=1.5)
        assert np.abs(audio).max() < 0.999
        assert file_sha256(corpus / row["file"]) == row["sha256"]


def test_a_second_build_does_nothing(corpus: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    calls: list[int] = []
    summary = build_corpus(corpus, **{**SMALL, "minutes": 1}, on_progress=lambda done, total: calls.append(done))
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
