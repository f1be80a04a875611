"""The files, captions and splits of a source; no composition is in two splits."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import mutagen
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from pipelines.ingest.manifests import SourceError
from pipelines.ingest.sidecars import add_sidecar_fields, read_metadata
from pipelines.ingest.sources import Track, find_tracks
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.store import StoreError
from presto_core.config.data import IngestConfig

NAMES = [f"piece {i}" for i in range(400)]


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """A folder whose audio is never decoded: only names, sizes and other files matter."""
    for name in ("b.wav", "a.FLAC", "deep/er/c.mp3", "notes.pdf", "a.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    return tmp_path


def scan_folder(folder: Path, *, validation: float = 0.1, test: float = 0.1, licence: str = "") -> list[Track]:
    settings = IngestConfig(source=str(folder), validation_fraction=validation, test_fraction=test, licence=licence)
    return find_tracks(settings)


def list_stamps(folder: Path) -> set[tuple[str, str]]:
    """Return the stamps, which decide whether a file is read again."""
    return {(track.uri, track.stamp) for track in scan_folder(folder)}


def list_in_manifest(folder: Path, *rows: object) -> None:
    (folder / "manifest.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")


def wav_bytes(form: str = "WAV") -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(4000), 44100, format=form)
    return stream.getvalue()


# --- which files


def test_every_audio_file_below_the_folder_in_a_fixed_order(music: Path):
    assert [t.file for t in scan_folder(music)] == ["a.FLAC", "b.wav", "deep/er/c.mp3"]


def test_a_manifest_decides_what_is_taken(music: Path):
    row = {
        "file": "b.wav", "caption": "a tune", "tempo_bpm": "120", "key": "C# minor", "composition_id": "k1",
        "split": "validation", "title": "T", "composer": "X", "source": "S", "licence": "CC0", "duration_seconds": 7.5,
    }  # fmt: skip
    list_in_manifest(music, row, {"file": "a.FLAC", "tempo_bpm": None, "key": None, "split": None})
    second, first = (drop_location(t) for t in scan_folder(music, validation=0, test=0, licence="CC BY 4.0"))
    entry: dict[str, Any] = {
        "caption": "a tune",
        "caption_source": "manifest",
        "tempo_bpm": 120.0,
        "key": "C# minor",
        "composition": "k1",
        "split": "validation",
    }
    assert first == Track("b.wav", **entry, title="T", composer="X", source="S", licence="CC0", seconds=7.5)
    assert second == Track("a.FLAC", composition="a", split="train", licence="CC BY 4.0")


def drop_location(track: Track) -> Track:
    """Return the track without its location."""
    return replace(track, source_uri="", path="", stamp="", sidecars=(), manifest_fields=())


def test_a_source_without_audio_is_refused(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("no music")
    with pytest.raises(SourceError, match=rf"{tmp_path}; .*wav, flac"):
        scan_folder(tmp_path)
    (tmp_path / "manifest.jsonl").write_text("\n")
    with pytest.raises(SourceError, match=str(tmp_path)):
        scan_folder(tmp_path)
    with pytest.raises(StoreError, match="nowhere"):
        scan_folder(tmp_path / "nowhere")
    with pytest.raises(SourceError, match=r"notes\.txt"):
        scan_folder(tmp_path / "notes.txt")
    with pytest.raises(SourceError, match=r"ingest\.manifest"):
        scan_folder(tmp_path / "manifest.jsonl")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"caption": "x"}, "file=None"),
        ({"file": "/etc/passwd"}, "file='/etc/passwd'"),
        ({"file": "../x.wav"}, r"file='\.\./x\.wav'"),
        ({"file": "a.wav", "key": "H major"}, "key 'H major'"),
        ({"file": "a.wav", "key": 5}, "key '5'"),
        ({"file": "a.wav", "tempo_bpm": "fast"}, "tempo_bpm='fast'"),
        ({"file": "a.wav", "tempo_bpm": [120]}, r"tempo_bpm=\[120\]"),
        ({"file": "a.wav", "tempo_bpm": float("inf")}, "tempo_bpm=inf"),
        ({"file": "a.wav", "duration_seconds": "long"}, "duration_seconds='long'"),
        ({"file": "a.wav", "split": "val"}, "split='val'.*did you mean 'validation'.* train, validation or test"),
        ({"file": "a.wav", "split": "Eval"}, "split='Eval'.*did you mean 'test'"),
        ({"file": "a.wav", "split": "fold 3"}, "split='fold 3' is invalid; use train, validation or test"),
        ({"file": "a.wav", "split": 2}, "split=2 is invalid; use train"),
        (["a.wav"], "list"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, row: object, message: str):
    list_in_manifest(tmp_path, {"file": "good.wav"}, row)
    with pytest.raises(SourceError, match=rf"manifest\.jsonl line [23].*{message}") as caught:
        scan_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_manifest_that_is_cut_is_refused(tmp_path: Path):
    (tmp_path / "manifest.jsonl").write_text('{"file": "a.wav"}\n{"file": "b.')
    with pytest.raises(SourceError, match=r"manifest\.jsonl line 2"):
        scan_folder(tmp_path)


# --- splits


def splits(tracks: list[Track]) -> dict[str, set[str]]:
    """Return the splits of each composition's tracks."""
    seen: dict[str, set[str]] = {}
    for track in tracks:
        seen.setdefault(track.composition, set()).add(track.split)
    return seen


def test_no_composition_is_in_two_splits(tmp_path: Path):
    """Three takes of each piece, in several formats and folders, share one split; two tenths are not trained on."""
    for name in NAMES:
        for take in (f"wav/{name}.wav", f"mp3/{name}.mp3", f"{name}.flac"):
            (tmp_path / take).parent.mkdir(exist_ok=True)
            (tmp_path / take).touch()
    sides = splits(scan_folder(tmp_path))
    assert len(sides) == len(NAMES)
    assert all(len(side) == 1 for side in sides.values())
    for split in ("validation", "test"):
        pieces = sum(side == {split} for side in sides.values())
        assert abs(pieces - 0.1 * 400) < 4 * (0.1 * 0.9 * 400) ** 0.5  # four standard deviations of a fair hash


def files_of(tracks: list[Track], split: str) -> set[str]:
    return {track.file for track in tracks if track.split == split}


def test_a_larger_fraction_or_another_neighbour_moves_no_piece_back(tmp_path: Path):
    """Splits depend on the piece alone, so that a data set that grows does not leak what it did not train on."""
    list_in_manifest(tmp_path, *({"file": f"{name}.wav"} for name in NAMES))
    tests = {f: files_of(scan_folder(tmp_path, test=f), "test") for f in (0, 0.1, 0.5)}
    assert tests[0] < tests[0.1] < tests[0.5]
    trains = {f: files_of(scan_folder(tmp_path, validation=f), "train") for f in (0, 0.1, 0.5)}
    assert trains[0] > trains[0.1] > trains[0.5]
    for fraction in (0, 0.1, 0.5):
        assert files_of(scan_folder(tmp_path, validation=fraction), "test") == tests[0.1]
    list_in_manifest(tmp_path, *({"file": f"{name}.wav"} for name in ["new", *NAMES[::-1]]))
    assert files_of(scan_folder(tmp_path), "test") - {"new.wav"} == tests[0.1]


def test_the_train_split_depends_on_the_sum_of_the_fractions_alone(tmp_path: Path):
    """It is also what the former setting, the share of both together, chose: a hash of the composition above it."""
    list_in_manifest(tmp_path, *({"file": f"{name}.wav"} for name in NAMES))
    expected = {f"{n}.wav" for n in NAMES if int(hashlib.sha256(n.encode()).hexdigest()[:16], 16) / 2**64 >= 0.25}
    former = find_tracks(IngestConfig(source=str(tmp_path), held_out_fraction=0.25))
    for tracks in (former, scan_folder(tmp_path, validation=0.125, test=0.125), scan_folder(tmp_path, test=0.15)):
        assert files_of(tracks, "train") == expected


def test_the_former_split_of_a_manifest_is_divided_by_composition_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """What the hash of ingest put there is divided fairly, too, and with fractions of 0 and f as these ask."""
    held_out = [name for name in NAMES if hashlib.sha256(name.encode()).digest()[0] < 128]
    rows = [{"file": f"{take} {n}.wav", "composition_id": n, "split": "held_out"} for n in held_out for take in "ab"]
    list_in_manifest(tmp_path, *rows, {"file": "c.wav", "split": "train"})
    tracks = scan_folder(tmp_path)
    sides = splits([t for t in tracks if t.file != "c.wav"])
    assert {next(iter(side)) for side in sides.values() if len(side) == 1} == {"validation", "test"}
    tests = sum(side == {"test"} for side in sides.values())
    assert abs(tests - len(held_out) / 2) < 4 * (len(held_out) / 4) ** 0.5
    printed = " ".join(capsys.readouterr().err.split())
    assert (
        f"of its {len(held_out)} compositions, {len(held_out) - tests} are for validation and {tests} for test"
        in printed
    )
    assert {t.split for t in scan_folder(tmp_path, validation=0)} == {"train", "test"}
    assert {t.split for t in scan_folder(tmp_path, test=0)} == {"train", "validation"}


def test_compositions_of_a_manifest_stay_together(tmp_path: Path):
    rows = [{"file": f"{i}.wav", "composition_id": NAMES[i % 40]} for i in range(400)]
    list_in_manifest(tmp_path, *rows)
    sides = splits(scan_folder(tmp_path, validation=0.3, test=0.3))
    assert len(sides) == 40
    assert all(len(side) == 1 for side in sides.values())
    assert all({split} in sides.values() for split in ("train", "validation", "test"))


def test_an_explicit_split_applies_to_the_whole_composition(tmp_path: Path):
    entries = [{"file": "album 1/01.wav", "split": "test"}, {"file": "album 2/01.wav", "split": "train"}]
    pieces = [{"file": f"x {n}.wav", "composition_id": n, "split": "validation"} for n in NAMES[:20]]
    silent = [{"file": f"y {n}.wav", "composition_id": n} for n in NAMES[:20]]
    list_in_manifest(tmp_path, *entries, *pieces, *silent)
    one, two, *others = scan_folder(tmp_path)
    assert (one.split, two.split) == ("test", "train")
    assert {t.split for t in others} == {"validation"}


@pytest.mark.parametrize("pair", [("train", "test"), ("test", "validation"), ("held_out", "test")])
def test_a_composition_in_two_splits_is_refused(tmp_path: Path, pair: tuple[str, str]):
    list_in_manifest(tmp_path, *({"file": f"{s}.wav", "composition_id": "BWV 1", "split": s} for s in pair))
    first, second = sorted(pair)
    with pytest.raises(
        SourceError, match=rf"composition 'BWV 1' in two splits, {first} and {second} \({second}\.wav\)"
    ):
        scan_folder(tmp_path)


# --- what is read again


def test_what_is_not_taken_changes_nothing(music: Path):
    before = list_stamps(music)
    (music / "notes.pdf").write_bytes(b"changed")
    (music / "orphan.txt").write_text("beside no audio")
    assert list_stamps(music) == before


@pytest.mark.parametrize("change", ["renamed", "longer", "same length", "sidecar", "new sidecar"])
def test_a_changed_file_is_read_again_and_its_neighbours_are_not(music: Path, change: str):
    before, song = list_stamps(music), music / "b.wav"
    match change:
        case "renamed":
            song.rename(music / "bb.wav")
        case "longer":
            song.write_bytes(b"{}+")
        case "same length":
            song.write_bytes(b"[]")
            os.utime(song, ns=(1, 2))
        case "sidecar":
            (music / "a.json").write_text('{"caption": "new"}')
        case "new sidecar":
            (music / "deep/er/c.txt").write_text("new")
    assert len(list_stamps(music) - before) == len(before - list_stamps(music)) == 1


def test_a_changed_sidecar_of_a_track_with_a_caption_is_read_again(music: Path):
    list_in_manifest(music, {"file": "a.FLAC", "caption": "x"}, {"file": "b.wav"})
    before = list_stamps(music)
    (music / "a.json").write_text('{"tempo_bpm": 90}')
    assert len(list_stamps(music) - before) == 1
    before = list_stamps(music)
    list_in_manifest(music, {"file": "a.FLAC"}, {"file": "b.wav"})
    assert len(list_stamps(music) - before) == 1  # its caption must be looked up now


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_manifest_may_have_several_wordings_of_a_caption(tmp_path: Path, suffix: str):
    wordings = ["slow piano", "piano, in A minor"]
    (tmp_path / "a.wav").write_bytes(wav_bytes())
    row = {"file": "a.wav", "caption": "solo piano", "captions": wordings}
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "manifest.parquet")
    elif suffix == "csv":
        quoted = json.dumps(wordings).replace('"', '""')
        (tmp_path / "manifest.csv").write_text(f'file,caption,captions\na.wav,solo piano,"{quoted}"\n')
    else:
        (tmp_path / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    (track,) = scan_folder(tmp_path)
    assert (track.caption, track.captions) == ("solo piano", tuple(wordings))


def test_the_first_of_several_wordings_is_the_caption_if_there_is_no_other(tmp_path: Path):
    (tmp_path / "a.wav").write_bytes(wav_bytes())
    list_in_manifest(tmp_path, {"file": "a.wav", "captions": ["slow piano", "piano"]})
    (track,) = scan_folder(tmp_path)
    assert (track.caption, track.captions, track.caption_source) == ("slow piano", ("piano",), "manifest")


@pytest.mark.parametrize("captions", ["no list", [""], ["a", 3], {"a": 1}])
def test_wordings_that_are_no_list_of_texts_are_refused(tmp_path: Path, captions: object):
    list_in_manifest(tmp_path, {"file": "a.wav", "caption": "solo piano", "captions": captions})
    with pytest.raises(SourceError, match=r"line 1: captions=.* list of texts"):
        scan_folder(tmp_path)


def test_a_file_that_is_listed_but_not_there_has_no_stamp(music: Path):
    list_in_manifest(music, {"file": "b.wav"}, {"file": "gone.wav"})
    assert [bool(track.stamp) for track in scan_folder(music)] == [True, False]


def test_a_file_listed_twice_is_refused(music: Path):
    list_in_manifest(music, {"file": "b.wav"}, {"file": "b.wav"})
    with pytest.raises(SourceError, match=r"'b\.wav' "):
        scan_folder(music)


# --- several sources, other manifests


def test_files_of_several_sources_get_unique_names(tmp_path: Path):
    for folder in ("x/music", "y/music", "z"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.wav").touch()
    tracks = find_tracks(IngestConfig(source=tuple(str(tmp_path / p) for p in ("x/music", "y/music", "z"))))
    assert [t.file for t in tracks] == ["music-0/a.wav", "music-1/a.wav", "z/a.wav"]
    assert [t.uri for t in tracks] == [str(tmp_path / p / "a.wav") for p in ("x/music", "y/music", "z")]


ROWS: list[dict[str, Any]] = [
    {"file": "b.wav", "caption": 'say "x, y"\nin two lines', "tempo_bpm": 90.5},
    {"file": "a.FLAC", "caption": "ü"},
]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("named", [True, False])
def test_a_manifest_may_be_jsonl_csv_or_parquet(music: Path, tmp_path: Path, suffix: str, named: bool):
    path = tmp_path / "elsewhere" / f"captions.{suffix}" if named else music / f"manifest.{suffix}"
    path.parent.mkdir(exist_ok=True)
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif suffix == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file", "caption", "tempo_bpm"])
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    second, first = find_tracks(IngestConfig(source=str(music), manifest=str(path) if named else ""))
    assert (first.caption, first.tempo_bpm) == (ROWS[0]["caption"], 90.5)
    assert (second.file, second.caption, second.tempo_bpm) == ("a.FLAC", "ü", None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.csv", b"path,caption\na.wav,x\n", r"manifest\.csv .*column 'file' .*'path', 'caption'"),
        ("manifest.csv", b"file,caption\na.wav,x,y\n", r"manifest\.csv line 2 has 3 .* 2;"),
        ("manifest.csv", b'file,caption\na.wav,"x\n', r"manifest\.csv line \d"),
        ("manifest.csv", b"file\n\xff\xfe.wav\n", r"manifest\.csv .*UTF-8"),
        ("manifest.csv", b"file,tempo_bpm\na.wav,fast\n", r"manifest\.csv line 2: tempo_bpm='fast'"),
        ("manifest.parquet", b"PAR1 no more", r"manifest\.parquet"),
        ("manifest.jsonl", b'{"file": "a.wav"}\n{"fi', r"manifest\.jsonl line 2"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        scan_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_which_manifest_must_be_clear(music: Path):
    for suffix in ("csv", "jsonl"):
        (music / f"manifest.{suffix}").touch()
    with pytest.raises(SourceError, match=r"manifest\.jsonl and manifest\.csv; .*ingest\.manifest="):
        scan_folder(music)
    with pytest.raises(SourceError, match=r"'notes\.pdf' .*\.jsonl, \.csv, \.parquet"):
        find_tracks(IngestConfig(source=str(music), manifest=str(music / "notes.pdf")))


# --- captions


def read_track(folder: Path, file: str = "my_song-2.wav", content: bytes = b"", **known: object) -> Track:
    (folder / file).write_bytes(content)
    track = replace(next(t for t in scan_folder(folder) if t.file == file), **known)  # type: ignore[arg-type]
    alone = replace(track, **{"split": "", "composition": "", "manifest_fields": tuple(known)} | known)  # type: ignore[arg-type]
    facts = read_metadata(track, io.BytesIO(content), open_folder(str(folder)))
    return drop_location(add_sidecar_fields(alone, facts))


def test_captions_come_from_the_row_then_sidecars_then_tags_then_the_name(tmp_path: Path):
    (tmp_path / "x").mkdir()
    tagged = io.BytesIO(wav_bytes("FLAC"))
    tags = mutagen.File(tagged)
    tags["genre"], tags["title"] = "Jazz", "Blue"
    tagged.seek(0)
    tags.save(tagged)
    name, content = "x/my_song-2.flac", tagged.getvalue()
    assert read_track(tmp_path, name, wav_bytes("FLAC")).caption == "my song 2"
    assert read_track(tmp_path, name, content).caption == "Jazz, Blue"
    (tmp_path / "x/my_song-2.txt").write_text("  a slow blues \n")
    assert read_track(tmp_path, name, content).caption == "a slow blues"
    (tmp_path / "x/my_song-2.json").write_text('{"caption": "a fast blues"}')
    assert read_track(tmp_path, name, content).caption == "a fast blues"
    assert read_track(tmp_path, name, content, caption="its own") == Track(name, caption="its own")


def test_a_json_sidecar_has_more_than_a_caption(tmp_path: Path):
    facts: dict[str, Any] = {
        "caption": "c",
        "tempo_bpm": 98,
        "key": "Eb major",
        "title": "t",
        "composer": "k",
        "licence": "CC0",
    }
    (tmp_path / "my_song-2.json").write_text(json.dumps(facts | {"mood": "ignored"}))
    track = read_track(tmp_path, licence="as the source", composition="k1", split="train", seconds=3.0)
    known = {"licence": "as the source", "composition": "k1", "split": "train", "seconds": 3.0}
    assert track == Track("my_song-2.wav", **facts | known, caption_source="sidecar")


def test_a_sidecar_without_a_caption_leaves_tags_and_what_is_known(tmp_path: Path):
    (tmp_path / "my_song-2.json").write_text('{"caption": null, "key": "", "licence": ""}')
    assert read_track(tmp_path, licence="CC0") == Track(
        "my_song-2.wav", caption="my song 2", caption_source="name", licence="CC0"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"my_song-2\.json"),
        (b"\xff\xfe\xfd", r"my_song-2\.json"),
        ('["caption"]', r"my_song-2\.json .*list"),
        ('{"key": 5}', "key '5'"),
        ('{"tempo_bpm": "fast"}', "tempo_bpm='fast'"),
    ],
)
def test_a_bad_sidecar_is_a_reason_to_leave_the_track_out(tmp_path: Path, content: str | bytes, message: str):
    (tmp_path / "my_song-2.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_track(tmp_path)


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
def test_damaged_tags_fall_back_to_the_file_name(tmp_path: Path, form: str):
    content = wav_bytes(form)
    for damaged in (content[:60], content[: len(content) // 2], b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + content, b""):
        assert read_track(tmp_path, content=damaged).caption == "my song 2"
