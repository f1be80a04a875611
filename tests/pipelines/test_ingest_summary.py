"""What ingest prints before and after: bad files found by their headers, summaries by reason, and the preview."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from typer.testing import CliRunner

from infra.cli.main import app
from pipelines.console import LOG_WIDTH
from pipelines.ingest.bad_files import (
    BadFileLimit,
    TooManyBadFilesError,
    find_bad_headers,
    group_by_reason,
    read_headers,
)
from pipelines.ingest.curation import CuratedTracks, RejectedFile
from pipelines.ingest.latent_cache import EncodedContent, IngestFailure
from pipelines.ingest.manifests import SourceError
from pipelines.ingest.preview import SHOWN, format_preview, preview_source
from pipelines.ingest.shard_writer import CuratedTrack
from pipelines.ingest.sources import Track, find_tracks
from pipelines.ingest.summary import describe_bad, describe_result
from pipelines.stages import ingest
from pipelines.storage.filesystem import open_folder
from pipelines.storage.local_s3 import Server
from presto_core.artifacts.store import write_bytes
from presto_core.config.data import IngestConfig
from presto_core.config.loader import load_config
from presto_core.config.schema import IngestStage
from tests.support.music import RATE_HZ, notes, write_awkward_but_good, write_bad, write_music

HOSTILE = "a[/red]\x1b[31mx.flac"


def reject(file: str, message: str, stage: str = "decode") -> RejectedFile:
    return RejectedFile(file, f"/m/{file}", IngestFailure(stage, "AudioError", message))


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "music"
    write_music(folder)
    return folder


# --- headers


def test_files_whose_beginning_tells_are_found_and_no_good_one_is(tmp_path: Path):
    bad, good = write_bad(tmp_path / "bad"), write_awkward_but_good(tmp_path / "good")
    found = {b.file: b.failure for b in find_bad_headers(find_tracks(IngestConfig(source=str(tmp_path / "bad"))))}
    assert found.keys() == {"empty.wav", "text.mp3", "bad sidecar.wav"}
    for name, failure in found.items():
        assert failure.stage == bad[name][0]
        assert bad[name][1] in failure.message
    tracks = find_tracks(IngestConfig(source=str(tmp_path / "good")))
    assert {track.file for track in tracks} == good.keys()
    assert find_bad_headers(tracks) == []


def test_a_file_that_may_not_be_read_is_no_crash(tmp_path: Path):
    """A folder of that name opens as no file, whoever runs this."""
    (tmp_path / "a.wav").mkdir()
    (header,) = read_headers([Track("a.wav", source_uri=str(tmp_path), path="a.wav", stamp="x")])
    assert header.failure is not None
    assert header.failure.stage == "fetch"


def test_too_many_bad_headers_end_the_run_before_anything_is_encoded(
    music: Path, empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(ingest, "ray_session", None)  # would be called next
    config = load_config(IngestStage, None, {"ingest.source": str(music), "storage.root": "store"})
    with pytest.raises(SourceError, match=r"1 of 8 files .*broken\.wav.*nothing was encoded"):
        ingest.run(config)
    assert "broken.wav" in Path(".presto/reports/quarantine.tsv").read_text()
    assert "quarantined  1 file" in capsys.readouterr().err
    assert not Path("store").exists()


def test_the_first_file_too_many_ends_the_run():
    limit = BadFileLimit(100, 0.02)
    for name in ("a.wav", "b.wav", "b.wav"):  # a file counts once
        limit.add(reject(name, "holds silence only"))
    with pytest.raises(TooManyBadFilesError, match=r"3 of 100 files .*the rest was not read") as caught:
        limit.add(reject("c.wav", "holds silence only"))
    assert [bad.file for bad in caught.value.bad] == ["a.wav", "b.wav", "c.wav"]


# --- the summary


def test_reasons_are_the_same_whatever_the_numbers_and_names_in_them():
    bad = [reject(f"{i}th.wav", f"is shorter than one window: {900 + i} of 16384 samples") for i in range(7)]
    bad += [reject(f"song {i}.mp3", f"its sidecar song {i}.json is not JSON", "describe") for i in range(3)]
    bad += [reject("k.wav", "key 'H sharp' is no key", "describe"), reject("l.wav", "key 'J' is no key", "describe")]
    bad += [reject("one.wav", "lasts 3.00 s, but its manifest has duration_seconds=9")]
    groups = group_by_reason(bad)
    assert [len(files) for files in groups.values()] == [7, 3, 2, 1]
    assert next(iter(groups)).startswith("decode: is shorter than one window")
    assert list(groups)[-1] == "decode: lasts 3.00 s, but its manifest has duration_seconds=9"  # alone: as it is


def test_names_are_up_to_five_and_escaped_and_lines_fit():
    bad = [reject(f"{'a long folder/' * 4}{i} {HOSTILE}", "is truncated: 3 of 4 samples") for i in range(9)]
    lines = describe_bad(bad)
    text = " ".join(" ".join(lines).split())
    assert text.count("x.flac") == 5
    assert "and 4 more" in text
    assert "\x1b" not in text
    assert max(map(len, lines)) <= LOG_WIDTH - len("ingest: ")


def test_a_summary_has_what_was_taken_skipped_and_quarantined():
    track = Track("a.wav", split="train", caption_source="name", licence="CC0", tempo_bpm=120)
    tracks = [track, replace(track, file="b", key="A minor")]
    entries = [CuratedTrack(one, EncodedContent(one.file)) for one in tracks]
    rows, hours = {"train": 9, "validation": 0, "test": 0}, {"train": 1.5}
    info = {"rows": rows, "hours": hours, "silent_windows": 4, "doubles": 1}
    curated = CuratedTracks(entries, [reject("c.wav", "holds silence only")], {"d.wav": "a.wav"})
    lines = describe_result(info, curated, Counter({"files of macOS without audio": 2}))
    text = " ".join(" ".join(lines).split())
    for part in (
        "taken 2 files, 9 rows, 1.50 h",
        "test: 0 files",
        "file names (2)",
        "tempo of 2, key of 1 of 2 files",
        "CC0 (2)",
        "2 files of macOS",
        "4 windows of silence",
        "1 file with the same bytes",
        "1 decode: holds silence only c.wav",
    ):
        assert part in text


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.services
def test_a_run_ends_with_the_summary_and_the_command_for_the_rest(
    music: Path, workdir: Path, shared_ray: None, capsys: pytest.CaptureFixture[str]
):
    settings = {"ingest.source": str(music), "storage.root": "store", "ingest.chunk_frames": 8, "text.max_tokens": 8,
                "ingest.max_bad_fraction": 0.4, "cluster.data_workers": 1}  # fmt: skip
    made = ingest.run(load_config(IngestStage, None, settings))
    printed = capsys.readouterr().err
    assert "taken        5 files, 16 rows" in printed
    assert "quarantined  3 files" in printed
    command = printed[printed.index("presto dataset quarantine ") :].split("\n")[0].split()
    listed = CliRunner().invoke(app, [*command[1:], "--json"])
    assert {row["file"] for row in json.loads(listed.stdout)} == {"broken.wav", "short.wav", "silent.wav"}
    assert made.uri in command[-1]
    ingest.run(load_config(IngestStage, None, settings))  # reused: the summary is there again
    assert "taken        5 files, 16 rows" in capsys.readouterr().err
    strict = settings | {"ingest.max_bad_fraction": 0.2, "ingest.chunk_frames": 9}
    with pytest.raises(SourceError, match=r"2 of 8 files cannot be used.*the rest was not read"):
        ingest.run(load_config(IngestStage, None, strict))


# --- the preview


def test_the_preview_shows_what_files_would_get_and_is_yaml_still(music: Path, empty: Path):
    done = CliRunner().invoke(app, ["ingest", f"ingest.source={music}", "ingest.licence=CC0", "--dry-run"])
    assert done.exit_code == 0, done.exception
    assert yaml.safe_load(done.stdout)["ingest"]["source"] == [str(music)]
    preview = done.stdout[done.stdout.index("# preview: ") :]
    for part in ("8 files", "120 bpm, A minor, CC BY 4.0", "sidecar: bright notes", "name: the end 2", "CC0 (6)",
                 "broken.wav", "ingest would refuse it"):  # fmt: skip
        assert part in preview
    assert max(map(len, preview.splitlines())) <= LOG_WIDTH
    assert list(empty.iterdir()) == []


def test_a_preview_is_of_ten_files_over_the_whole_source_and_escapes_names(tmp_path: Path):
    folder = tmp_path / "a["
    folder.mkdir()
    for i in range(25):
        soundfile.write(folder / f"{i:02}.wav", notes(0.1, seed=i), RATE_HZ)
    (folder / "07.txt").write_text("\x1b[31m[/red] " + "very " * 40)
    shutil.copy(folder / "00.wav", folder / "red]\x1bx.wav")
    preview = preview_source(IngestConfig(source=str(tmp_path)))
    lines = format_preview(preview, IngestConfig())
    assert (len(preview.tracks), len(preview.opened)) == (26, 26)
    shown = [line for line in lines if line.endswith(".wav")]
    assert len(shown) == SHOWN
    assert shown[0].endswith("a[/00.wav")
    assert "\x1b" not in "".join(lines)
    assert max(map(len, lines)) <= LOG_WIDTH - 2


def test_audio_that_a_manifest_does_not_list_is_counted(tmp_path: Path):
    for name in ("a.wav", "b.wav", "c.m4b"):
        soundfile.write(tmp_path / "x.wav", np.zeros(99), RATE_HZ)
        (tmp_path / "x.wav").rename(tmp_path / name)
    (tmp_path / "manifest.csv").write_text("file,caption\na.wav,piano\nnot there.wav,flute\n")
    preview = preview_source(IngestConfig(source=str(tmp_path)))
    assert preview.skipped == {"audio files that manifest.csv does not list": 2}
    assert [bad.file for bad in preview.bad] == ["not there.wav"]
    assert "1 fetch: is listed in the manifest but not there" in " ".join(format_preview(preview, IngestConfig()))


def test_a_source_that_is_not_there_yet_leaves_the_settings(empty: Path):
    done = CliRunner().invoke(app, ["ingest", "ingest.source=nowhere", "--dry-run"])
    assert done.exit_code == 0
    assert yaml.safe_load(done.stdout)["ingest"]["source"] == ["nowhere"]
    assert "no preview" in done.stderr
    assert "nowhere" in done.stderr


@pytest.mark.services
def test_of_object_storage_only_the_files_shown_are_opened(object_store: Server, music: Path):
    remote = open_folder("s3://latents/preview-test")
    for i in range(12):
        write_bytes(remote, f"{i:02}.wav", (music / "half.wav").read_bytes())
    preview = preview_source(IngestConfig(source=remote.uri))
    assert (len(preview.tracks), len(preview.opened)) == (12, SHOWN)
    assert "2 of them not opened" in format_preview(preview, IngestConfig())[0]
