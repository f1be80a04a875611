"""Segmenting one file: unusual files are kept, bad ones rejected with a reason, and memory stays bounded."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import soundfile
from blake3 import blake3

from pipelines.ingest import source_file
from pipelines.ingest.segments import EncodeSettings, FileResult, Segment, segment_file
from pipelines.ingest.sources import Track, find_tracks
from pipelines.storage.filesystem import open_folder
from pipelines.storage.local_s3 import Server
from presto_core.artifacts.store import write_bytes
from presto_core.audio.codec import CodecError
from presto_core.audio.load_codec import load_codec
from presto_core.audio.loudness import integrated_loudness
from presto_core.config.data import IngestConfig
from presto_core.config.loader import load_config
from presto_core.config.schema import IngestStage
from tests.support.music import FRAMES, RATE_HZ, WINDOW, notes, write_awkward_but_good, write_bad


def encoding(**settings: object) -> EncodeSettings:
    keys = {f"ingest.{name}": value for name, value in {"chunk_frames": FRAMES, **settings}.items()}
    return EncodeSettings.from_config(load_config(IngestStage, None, keys), load_codec("mel_pca"))


def segments(folder: Path, file: str, how: EncodeSettings, **options: object) -> tuple[list[Segment], FileResult]:
    (track,) = (t for t in find_tracks(IngestConfig(source=str(folder))) if t.file == file)
    keywords: dict[str, Any] = {"known_digests": frozenset(), **options}
    *found, (digest, end) = segment_file(track, open_folder(str(folder)), how, **keywords)
    assert isinstance(end, FileResult)
    assert end.digest in ("", blake3((folder / file).read_bytes()).hexdigest())
    assert {of for of, _ in found} <= {digest}
    assert all(isinstance(segment, Segment) for _, segment in found)
    return [cast(Segment, segment) for _, segment in found], end


def audio_of(found: list[Segment]) -> np.ndarray:
    return np.concatenate([segment.audio for segment in found])


def test_awkward_files_give_all_their_windows(tmp_path: Path):
    good = write_awkward_but_good(tmp_path)
    for name, windows in good.items():
        found, end = segments(tmp_path, name, encoding())
        assert end.failure is None, (name, end.failure)
        assert sum(end.rows) == windows, name
        expected = notes(windows, seed=list(good).index(name))
        audio = audio_of(found).ravel()
        assert np.corrcoef(audio[: len(expected)], expected)[0, 1] > 0.99, name


def test_bad_files_are_refused_at_the_stage_and_for_the_reason(tmp_path: Path):
    for name, (stage, reason) in write_bad(tmp_path).items():
        _, end = segments(tmp_path, name, encoding())
        assert end.failure is not None, name
        assert end.failure.stage == stage, (name, end.failure)
        assert reason in end.failure.message, (name, end.failure)
        assert end.failure.error.endswith("Error")
        assert "\n" not in end.failure.message


def test_a_file_that_is_gone_is_refused_and_a_dead_source_ends_the_run(tmp_path: Path):
    gone = Track("gone.wav", source_uri=str(tmp_path), path="gone.wav", stamp="x")
    ((_, end),) = segment_file(gone, open_folder(str(tmp_path)), encoding(), known_digests=frozenset())
    assert isinstance(end, FileResult)
    assert end.failure is not None
    assert (end.failure.stage, end.failure.error) == ("fetch", "DamagedError")


@pytest.mark.parametrize("how", ["grows", "is cut", "is replaced"])
def test_a_file_that_changes_while_it_is_read_gives_no_more_and_is_read_again_later(tmp_path: Path, how: str):
    path = tmp_path / "a.wav"
    soundfile.write(path, notes(1200, seed=1, rate_hz=RATE_HZ), RATE_HZ)
    track = Track("a.wav", source_uri=str(tmp_path), path="a.wav", stamp="x")
    coming = segment_file(track, open_folder(str(tmp_path)), encoding(), known_digests=frozenset())
    digest, first = next(coming)
    assert isinstance(first, Segment)
    size = path.stat().st_size
    if how == "is replaced":  # the open file is read to its end
        path.unlink()
        path.write_bytes(b"another")
    else:
        os.truncate(path, size // 3 if how == "is cut" else size + 100)
    *more, (_, end) = coming
    assert isinstance(end, FileResult)
    if how == "is replaced":
        assert (len(more), end.failure, end.digest) == (2, None, digest)
        return
    assert more == []
    assert end.failure is not None
    assert (end.failure.stage, end.rows) == ("fetch", ())
    assert end.failure.error == "StoreError"


@pytest.mark.services
@pytest.mark.parametrize("spool", [100, 2**20], ids=["on disk", "in memory"])
def test_a_file_from_storage_is_copied(
    object_store: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spool: int
):
    monkeypatch.setattr(source_file, "SPOOL_BYTES", spool)
    folder = open_folder(f"s3://latents/{tmp_path.name}")
    write_bytes(folder, "a.wav", bytes(range(200)))
    with source_file.open_source_file(folder, "a.wav") as file:
        folder.delete_file("a.wav")
        assert file.digest == blake3(bytes(range(200))).hexdigest()
        assert file.stream.seek(0) == 0
        assert file.stream.read() == bytes(range(200))
        assert not file.has_changed


def test_of_a_known_content_nothing_is_decoded(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", notes(3, seed=1), RATE_HZ)
    known = frozenset([blake3((tmp_path / "a.wav").read_bytes()).hexdigest()])
    found, end = segments(tmp_path, "a.wav", encoding(), known_digests=known)
    assert (found, end.rows, end.facts["caption"]) == ([], (), "a")


def test_stereo_that_the_mono_mix_cancels_is_not_called_silent(tmp_path: Path):
    left = notes(3, seed=1)
    soundfile.write(tmp_path / "a.wav", np.stack([left, -left], axis=1), RATE_HZ)
    _, end = segments(tmp_path, "a.wav", encoding())
    assert end.failure is not None
    assert (end.failure.stage, end.failure.error) == ("decode", "AudioError")
    assert "its channels cancel in the mono mix" in end.failure.message
    assert "silence" not in end.failure.message


def test_silent_windows_are_left_out_and_counted_and_the_others_keep_their_position(tmp_path: Path):
    parts = [notes(2, seed=1), np.zeros(3 * WINDOW), notes(1, seed=2)]
    soundfile.write(tmp_path / "a.wav", np.concatenate(parts), RATE_HZ)
    found, end = segments(tmp_path, "a.wav", encoding())
    assert (end.rows, end.silent, end.seconds) == ((3,), 3, 6 * WINDOW / RATE_HZ)
    assert np.concatenate([s.starts for s in found]).tolist() == [0, WINDOW, 5 * WINDOW]


@pytest.mark.parametrize(("tail", "starts"), [("drop", [0, 1, 2]), ("pad", [0, 1, 2, 3]), ("shift", [0, 1, 2, 2.5])])
def test_the_tail_follows_its_setting(tmp_path: Path, tail: str, starts: list[float]):
    soundfile.write(tmp_path / "a.wav", notes(3.5, seed=1), RATE_HZ)
    found, _ = segments(tmp_path, "a.wav", encoding(tail=tail))
    assert (np.concatenate([s.starts for s in found]) / WINDOW).tolist() == starts


def test_segments_hold_three_minutes_and_count_on(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", notes(1200, seed=1, rate_hz=RATE_HZ), RATE_HZ)
    found, end = segments(tmp_path, "a.wav", encoding())
    assert end.rows == (516, 516, 168)  # 192 s hold 516 windows of 0.37 s
    assert [s.number for s in found] == [0, 1, 2]


@pytest.mark.parametrize("target", [-23.0, -14.0])
def test_loudness_is_brought_to_the_target(tmp_path: Path, target: float):
    for name, level in (("soft.wav", 0.02), ("loud.wav", 1.0)):
        soundfile.write(tmp_path / name, level * notes(20, seed=1), RATE_HZ, subtype="FLOAT")
        found, end = segments(tmp_path, name, encoding(loudness_lufs=target))
        whole = np.concatenate([w.T for s in found for w in s.audio])
        assert integrated_loudness([whole], sample_rate_hz=RATE_HZ) == pytest.approx(target, abs=0.1)
        assert end.seconds == 20 * WINDOW / RATE_HZ  # measuring loudness does not count the samples twice


def test_stereo_of_a_mono_codec_is_refused():
    with pytest.raises(CodecError, match=r"ingest\.channels=stereo .*mel_pca has 1;"):
        encoding(channels="stereo")


def test_every_setting_that_changes_latents_has_a_path_of_its_own():
    settings: list[dict[str, Any]] = [
        {},
        {"chunk_frames": 9},
        {"overlap_frames": 1},
        {"tail": "pad"},
        {"loudness_lufs": -20.0},
    ]
    assert len({encoding(**s).key for s in settings}) == len(settings)
    assert encoding(rows_per_shard=7, test_fraction=0.5, source="elsewhere").key == encoding().key


def test_memory_does_not_grow_with_the_length_of_a_file(tmp_path: Path):
    """Compare the peak memory of two hours with that of ten minutes."""
    peaks = []
    for minutes in (10, 120):
        with soundfile.SoundFile(tmp_path / f"{minutes}.flac", "w", 8000, 1, format="FLAC") as file:
            minute = notes(60 * RATE_HZ / WINDOW, seed=1, rate_hz=8000)
            for _ in range(minutes):
                file.write(minute)
        track = Track("x", source_uri=str(tmp_path), path=f"{minutes}.flac", stamp="x")
        tracemalloc.start()
        count = 0
        for _, found in segment_file(
            track, open_folder(str(tmp_path)), encoding(chunk_frames=689), known_digests=frozenset()
        ):
            count += len(found.audio) if isinstance(found, Segment) else 0
            del found
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == minutes * 60 * RATE_HZ // (689 * 2048)
    assert peaks[1] < 1.1 * peaks[0]
