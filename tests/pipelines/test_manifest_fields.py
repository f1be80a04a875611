"""Fields of manifests and sidecars: spellings that are understood, what is refused, and what is not read is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mutagen
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from mutagen.id3 import TCON, TIT2

from pipelines.ingest.curation import curate
from pipelines.ingest.latent_cache import EncodedContent, LatentCache, SourceRecord
from pipelines.ingest.manifests import SourceError
from pipelines.ingest.sidecars import read_metadata
from pipelines.ingest.sources import Track, find_tracks
from pipelines.storage.filesystem import open_folder
from presto_core.config.data import IngestConfig
from presto_core.diffusion.conditioning import key_index


def write_wav(path: Path) -> None:
    soundfile.write(path, np.zeros(400), 44100)


@pytest.fixture
def music(tmp_path: Path) -> Path:
    for name in ("a.wav", "b.wav"):
        write_wav(tmp_path / name)
    return tmp_path


def scan(folder: Path, **settings: Any) -> list[Track]:
    return find_tracks(IngestConfig(source=str(folder), **settings))


def list_in_manifest(folder: Path, *rows: object) -> None:
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def curate_folder(folder: Path, tmp_path: Path, **settings: Any) -> tuple[dict[str, Track], Any]:
    """Return the tracks of a data set by file, without decoding, and the curated tracks."""
    tracks, cache = scan(folder, **settings), LatentCache(open_folder(str(tmp_path / "cache")))
    for track in tracks:
        with (folder / track.path).open("rb") as content:
            facts = json.loads(json.dumps(read_metadata(track, content, open_folder(str(folder)))))
        cache.add(source_record=SourceRecord(track.uri, track.stamp, track.file, facts))
        cache.add(content=EncodedContent(track.file, (1,), seconds=1.0))
    curated = curate(tracks, cache)
    return {entry.track.file: entry.track for entry in curated.entries}, curated


# --- a manifest row and a sidecar


def test_a_manifest_wins_over_a_sidecar_field_by_field(music: Path):
    list_in_manifest(
        music,
        {"file": "a.wav", "caption": "of the row", "tempo_bpm": 90, "licence": "CC0"},
        {"file": "b.wav", "key": "C major", "licence": "CC BY 4.0"},
    )
    sidecar = {"caption": "of the sidecar", "tempo_bpm": 120, "key": "D minor", "licence": "proprietary", "title": "T"}
    for name in ("a.json", "b.json"):
        (music / name).write_text(json.dumps(sidecar))
    tracks, _ = curate_folder(music, music)
    a, b = tracks["a.wav"], tracks["b.wav"]
    assert (a.caption, a.tempo_bpm, a.key, a.licence, a.title) == ("of the row", 90, "D minor", "CC0", "T")
    assert (b.caption, b.tempo_bpm, b.key, b.licence) == ("of the sidecar", 120, "C major", "CC BY 4.0")
    assert (a.caption_source, b.caption_source) == ("manifest", "sidecar")


def test_a_licence_of_the_settings_is_for_files_without_their_own(music: Path):
    (music / "a.json").write_text('{"licence": "CC0"}')
    tracks, _ = curate_folder(music, music, licence="CC BY 4.0")
    assert {file: track.licence for file, track in tracks.items()} == {"a.wav": "CC0", "b.wav": "CC BY 4.0"}


def test_of_two_sidecars_the_text_adds_the_caption_that_the_json_lacks(music: Path):
    (music / "a.json").write_text('{"tempo_bpm": 90}')
    (music / "a.txt").write_text("slow piano")
    tracks, _ = curate_folder(music, music)
    assert (tracks["a.wav"].caption, tracks["a.wav"].tempo_bpm) == ("slow piano", 90)
    assert tracks["a.wav"].caption_source == "sidecar"


def test_wordings_of_a_sidecar_join_the_caption_of_the_row(music: Path):
    list_in_manifest(music, {"file": "a.wav", "caption": "piano"}, {"file": "b.wav"})
    for name in ("a.json", "b.json"):
        (music / name).write_text('{"captions": ["slow piano", "a piano"]}')
    tracks, _ = curate_folder(music, music)
    assert (tracks["a.wav"].caption, list(tracks["a.wav"].captions)) == ("piano", ["slow piano", "a piano"])
    assert (tracks["b.wav"].caption, list(tracks["b.wav"].captions)) == ("slow piano", ["a piano"])


# --- durations


@pytest.mark.parametrize(
    ("stated_s", "decoded_s", "agrees"),
    [(1, 1.9, True), (1, 2.1, False), (200, 198.1, True), (200, 197.9, False), (0, 5, True), ("3 s", 2.5, True),
     (8, 4, False)],
)  # fmt: skip
def test_a_duration_that_disagrees_with_the_audio_is_quarantined_with_both_numbers(
    music: Path, stated_s: object, decoded_s: float, agrees: bool
):
    list_in_manifest(music, {"file": "a.wav", "caption": "x", "duration_seconds": stated_s})
    (track,), cache = scan(music), LatentCache(open_folder(str(music / "cache")))
    cache.add(source_record=SourceRecord(track.uri, track.stamp, "digest"))
    cache.add(content=EncodedContent("digest", (1,), seconds=decoded_s))
    curated = curate([track], cache)
    assert [entry.track.seconds for entry in curated.entries] == ([decoded_s] if agrees else [])
    if not agrees:
        (bad,) = curated.bad
        assert (bad.file, bad.failure.stage, bad.failure.error) == ("a.wav", "decode", "DurationError")
        assert f"lasts {decoded_s:.2f} s" in bad.failure.message
        assert f"duration_seconds={stated_s};" in bad.failure.message


def test_a_negative_duration_is_refused(music: Path):
    list_in_manifest(music, {"file": "a.wav", "duration_seconds": -1})
    with pytest.raises(SourceError, match="line 1: duration_seconds=-1 must not be negative"):
        scan(music)


# --- names of fields


def test_names_of_columns_are_read_whatever_their_case_and_blanks(music: Path, capsys: pytest.CaptureFixture[str]):
    (music / "manifest.csv").write_text('file, Caption, TEMPO_BPM ,split\na.wav, "slow, sad", 90 , train\n')
    (track,) = scan(music)
    assert (track.caption, track.tempo_bpm, track.split, track.file) == ("slow, sad", 90, "train", "a.wav")
    assert capsys.readouterr().err == ""


def test_columns_that_are_not_read_are_named_with_a_suggestion(music: Path, capsys: pytest.CaptureFixture[str]):
    (music / "manifest.csv").write_text("file,text,captoin,[mood],id\na.wav,x,y,z,1\n")
    assert scan(music)[0].caption == ""
    printed = " ".join(capsys.readouterr().err.split())
    assert "manifest.csv has fields that are not read" in printed
    assert "'text' (did you mean 'caption'?), 'captoin' (did you mean 'caption'?), '[mood]'" in printed
    assert "'id'" not in printed  # the default corpus has it, for its reader


def test_one_text_as_captions_is_refused_and_the_other_column_named(music: Path):
    (music / "manifest.csv").write_text("file,captions\na.wav,my text\n")
    with pytest.raises(SourceError, match=r"line 2: captions='my text' must be a JSON list of texts; .* as caption$"):
        scan(music)


def test_keys_of_sidecars_that_are_not_read_are_counted(music: Path):
    (music / "a.json").write_text('{"captoin": "x", "split": "test", "mood": "sad"}')
    (music / "b.json").write_text('{" Caption": "y", "mood": "sad", "License": "CC0"}')
    tracks, curated = curate_folder(music, music)
    assert curated.ignored_keys == {"captoin": 1, "split": 1, "mood": 2}
    assert (tracks["b.wav"].caption, tracks["b.wav"].licence) == ("y", "CC0")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_the_metadata_file_of_hugging_face_is_a_manifest(music: Path, suffix: str, capsys: pytest.CaptureFixture[str]):
    row, path = {"file_name": "a.wav", "caption": "x"}, music / f"metadata.{suffix}"
    if suffix == "csv":
        path.write_text("file_name,caption\na.wav,x\n")
    elif suffix == "jsonl":
        path.write_text(json.dumps(row))
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
    (track,) = scan(music)
    assert (track.file, track.caption, track.caption_source) == ("a.wav", "x", "manifest")
    assert f"metadata.{suffix} is used as the manifest" in " ".join(capsys.readouterr().err.split())


def test_a_metadata_file_that_lists_no_files_or_lies_deeper_is_named(music: Path, capsys: pytest.CaptureFixture[str]):
    (music / "metadata.csv").write_text("id,mood\n1,sad\n")
    assert [t.file for t in scan(music)] == ["a.wav", "b.wav"]
    assert "metadata.csv is not used as a manifest" in " ".join(capsys.readouterr().err.split())
    (music / "metadata.csv").unlink()
    (music / "train").mkdir()
    (music / "train/metadata.csv").write_text("file_name,caption\nc.wav,x\n")
    assert len(scan(music)) == 2
    assert "train/metadata.csv is not read" in " ".join(capsys.readouterr().err.split())


def test_a_manifest_without_files_names_the_column_to_rename(music: Path):
    (music / "manifest.csv").write_text("path,caption\na.wav,x\n")
    with pytest.raises(SourceError, match="rename 'path'"):
        scan(music)


# --- values


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("Am", "A minor"), ("a minor", "A minor"), ("A Minor", "A minor"), ("C♯ minor", "C# minor"), ("Bbm", "Bb minor"),
     ("b♭ major", "Bb major"), ("C sharp minor", "C# minor"), ("E-flat major", "Eb major"), ("f#min", "F# minor"),
     ("bm", "B minor"), ("Db major", "Db major"), ("nan", None), ("", None)],
)  # fmt: skip
def test_spellings_of_keys_are_understood(music: Path, spelling: str, name: str | None):
    list_in_manifest(music, {"file": "a.wav", "key": spelling})
    (track,) = scan(music)
    assert track.key == name
    key_index(track.key)


@pytest.mark.parametrize("key", ["H minor", "A", "A lydian", "A b minor", "Amaj7"])
def test_what_is_no_key_is_refused(music: Path, key: str):
    list_in_manifest(music, {"file": "a.wav", "key": key})
    with pytest.raises(SourceError, match=f"line 1: key '{key}'"):
        scan(music)


@pytest.mark.parametrize(
    ("value", "tempo_bpm"),
    [("120 bpm", 120), ("120.5BPM", 120.5), (" 90 ", 90), (float("nan"), None), ("NaN", None), (None, None)],
)
def test_spellings_of_tempi_are_understood(music: Path, value: object, tempo_bpm: float | None):
    list_in_manifest(music, {"file": "a.wav", "tempo_bpm": value})
    assert scan(music)[0].tempo_bpm == tempo_bpm


@pytest.mark.parametrize("value", [0, -5, "0 bpm", True, "120 mph"])
def test_a_tempo_that_is_none_is_refused(music: Path, value: object):
    list_in_manifest(music, {"file": "a.wav", "tempo_bpm": value})
    with pytest.raises(SourceError, match=f"line 1: tempo_bpm={value!r} must be"):
        scan(music)


@pytest.mark.parametrize("value", [float("nan"), "nan", "None", "  ", None])
def test_a_missing_caption_is_none_and_not_the_word_for_it(music: Path, value: object):
    list_in_manifest(music, {"file": "a.wav", "caption": value, "licence": value, "title": "None"})
    (track,) = scan(music)
    assert (track.caption, track.licence, track.caption_source, track.title) == ("", "", "", "None")


@pytest.mark.parametrize("value", [["a", "b"], {"en": "a"}, True])
def test_a_caption_that_is_not_one_text_is_refused(music: Path, value: object):
    list_in_manifest(music, {"file": "a.wav", "caption": value})
    with pytest.raises(SourceError, match=r"line 1: caption=.* must be one text, not "):
        scan(music)
    (music / "manifest.jsonl").unlink()
    (music / "a.json").write_text(json.dumps({"caption": value}))
    with pytest.raises(ValueError, match="must be one text"):
        curate_folder(music, music)


def test_splits_are_read_whatever_their_case(music: Path):
    list_in_manifest(music, {"file": "a.wav", "split": " Test "}, {"file": "b.wav", "split": "TRAIN"})
    assert [t.split for t in scan(music)] == ["test", "train"]


@pytest.mark.parametrize("field", ["file", "caption", "title", "licence", "captions"])
def test_half_of_a_character_is_refused_and_the_row_named(music: Path, field: str):
    half: Any = "piano \ud83c"
    list_in_manifest(music, {"file": "b.wav"}, {"file": "a.wav"} | {field: [half] if field == "captions" else half})
    with pytest.raises(SourceError, match=rf"line 2: {field} holds half of a character.*ud83c") as caught:
        scan(music)
    str(caught.value).encode()  # can be printed


def test_half_of_a_character_in_a_sidecar_leaves_the_track_out(music: Path):
    (music / "a.json").write_text('{"caption": "piano \\ud83c"}')
    with pytest.raises(ValueError, match="caption holds half of a character"):
        curate_folder(music, music)


# --- bad rows are reported together


def test_all_bad_rows_are_counted_and_the_first_five_named(music: Path):
    rows: list[object] = [{"file": "a.wav"}, ["no row"]]
    rows += [{"file": f"{i}.wav", "tempo_bpm": 0} for i in range(6)]
    list_in_manifest(music, *rows)
    with pytest.raises(SourceError, match=r"manifest\.jsonl has 7 bad lines: line 2 .*line 3: .*line 6: ") as caught:
        scan(music)
    assert "line 7" not in str(caught.value)
    assert str(caught.value).endswith("and 2 more")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.csv", "file,caption,caption\na.wav,x,y\n"),
        ("manifest.jsonl", '{"file": "a.wav", "key": "C", "key": "D"}'),
    ],
)
def test_a_field_that_is_there_twice_is_refused(music: Path, name: str, content: str):
    (music / name).write_text(content)
    with pytest.raises(SourceError, match="twice"):
        scan(music)
    (music / name).unlink()
    (music / "a.json").write_text('{"caption": "x", "caption": "y"}')
    with pytest.raises(ValueError, match="'caption' twice"):
        curate_folder(music, music)


@pytest.mark.parametrize(
    "row", ['{"file": "a.wav", "tempo_bpm": 1' + "0" * 400 + "}", "[" * 50_000, '{"file": "a\\u0000.wav"}']
)
def test_rows_that_no_file_can_mean_are_refused_by_line(music: Path, row: str):
    (music / "manifest.jsonl").write_text(row)
    with pytest.raises(SourceError, match="line 1"):
        scan(music)


def test_bad_lines_of_a_csv_are_reported_with_bad_values(music: Path):
    (music / "manifest.csv").write_text("file,key\na.wav,H\nb.wav\na.wav,C major,x\n")
    with pytest.raises(SourceError, match=r"3 bad lines: line 2: key 'H'.*line 3 has 1 fields.*line 4 has 3 fields"):
        scan(music)


# --- encodings


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.txt", "a.json", "manifest.csv", "manifest.jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_text(music: Path, name: str, encoding: str):
    row = {"file": "a.wav", "caption": "für Elise"}
    texts = {".txt": row["caption"], ".csv": "file,caption\na.wav,für Elise\n"}
    text = texts.get(Path(name).suffix, json.dumps(row, ensure_ascii=False))
    (music / name).write_bytes(text.encode(encoding))
    tracks, _ = curate_folder(music, music)
    assert tracks["a.wav"].caption == "für Elise"


@pytest.mark.parametrize(
    ("content", "encoding"),
    [("Café, ténor".encode("latin-1"), "Latin-1"), ("“Café”".encode("cp1252"), "Windows-1252"),
     ("piano".encode("utf-16-le"), "UTF-16"), ("Café".encode("utf-16-le"), "UTF-16")],
)  # fmt: skip
def test_text_that_is_not_utf8_is_refused_with_the_name_of_its_encoding(music: Path, content: bytes, encoding: str):
    (music / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.txt is not UTF-8 text but probably {encoding}"):
        curate_folder(music, music)
    (music / "a.txt").unlink()
    (music / "manifest.csv").write_bytes(b"file,caption\na.wav," + content)
    with pytest.raises(SourceError, match=r"manifest\.csv is not UTF-8 text but probably"):
        scan(music)


# --- tags


@pytest.mark.parametrize("form", ["WAV", "AIFF", "MP3", "FLAC", "OGG"])
def test_a_caption_comes_from_the_tags_of_each_format(music: Path, form: str):
    path = music / f"c.{form.lower()}"
    soundfile.write(path, np.zeros(40_000), 44100, format=form)
    tags = mutagen.File(path)
    if form in ("FLAC", "OGG"):
        tags["genre"], tags["title"] = "Jazz", "Blue"
    else:
        if tags.tags is None:
            tags.add_tags()
        tags.tags.add(TCON(encoding=3, text=["(8)"]))  # the number of Jazz
        tags.tags.add(TIT2(encoding=3, text=["Blue"]))
    tags.save()
    tracks, _ = curate_folder(music, music)
    assert (tracks[path.name].caption, tracks[path.name].caption_source) == ("Jazz, Blue", "tags")


def test_a_caption_comes_from_the_info_list_of_a_wav(music: Path):
    with soundfile.SoundFile(music / "a.wav", "w", 44100, 1) as file:
        file.title, file.genre = "Blaues Café", "Jazz"
        file.write(np.zeros(400))
    tracks, _ = curate_folder(music, music)
    assert (tracks["a.wav"].caption, tracks["a.wav"].caption_source) == ("Jazz, Blaues Café", "tags")
