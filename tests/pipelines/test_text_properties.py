"""Any text in manifests, sidecars, tags, prompts, names and filters is kept to the byte, or refused in one message."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mutagen
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import assume, given
from hypothesis import strategies as st
from mutagen.id3 import TCON, TIT2
from mutagen.wave import WAVE

from pipelines.data.shards import FullRows, to_parquet
from pipelines.evaluate.folder_prompts import captions_from_names, match_prompts
from pipelines.inference.clip_files import make_clip_name, write_clip
from pipelines.inference.generator import GeneratedClip
from pipelines.inference.prompts import parse_prompt
from pipelines.ingest.metadata import is_missing
from pipelines.ingest.segments import EncodeSettings, FileResult, segment_file
from pipelines.ingest.sidecars import read_metadata
from pipelines.ingest.sources import Track, find_tracks
from pipelines.ingest.tags import read_tag_caption
from pipelines.registry.names import RegistryError, parse_reference
from pipelines.registry.search_filter import FIELDS, parse_filter
from pipelines.storage.filesystem import open_folder
from presto_core.config.data import IngestConfig
from presto_core.config.loader import ConfigError, load_config
from presto_core.config.overrides import parse_override
from presto_core.config.schema import CorpusStage, GenerateStage
from presto_core.errors import UserError
from tests.support.many_examples import few, make_texts

TEXTS, ANY_TEXTS = make_texts(), make_texts(is_valid=False)
COLUMNS = ["file", "caption", "captions", "tempo_bpm", "key", "split", "title", "licence", "duration_seconds"]
VALUES = st.one_of(
    ANY_TEXTS, st.none(), st.booleans(), st.integers(), st.integers(10**300, 10**400), st.floats(),
    st.lists(ANY_TEXTS, max_size=3), st.dictionaries(ANY_TEXTS, st.integers(), max_size=2),
    st.sampled_from(["a.wav", "./a.wav", "Am", "h moll", "120 bpm", "train", "Test", '["x", "y"]', "[" * 5000]),
)  # fmt: skip
FIELDS_OF_ROWS = st.dictionaries(st.sampled_from(COLUMNS) | ANY_TEXTS, VALUES, max_size=4)
FILES = st.sampled_from(["a.wav", "./a.wav", "gone.wav", "x/" * 300, "y" * 300]) | ANY_TEXTS
ROWS = FIELDS_OF_ROWS | st.builds(lambda row, file: row | {"file": file}, FIELDS_OF_ROWS, FILES)
ENCODING = EncodeSettings("c", 8000, window=100, step=100, tail="drop", channels=1, loudness_lufs=None)


def silence() -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(400), 44100, format="WAV")
    return stream.getvalue()


SILENCE = silence()


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file; each example writes its manifest or sidecar into it."""
    folder = tmp_path_factory.mktemp("music")
    (folder / "a.wav").write_bytes(SILENCE)
    return folder


def scan(folder: Path, name: str, content: bytes) -> list[Track] | str:
    """Return the tracks of a source with this manifest, or why it is refused."""
    (folder / name).write_bytes(content)
    try:
        return find_tracks(IngestConfig(source=str(folder)))
    except UserError as error:
        str(error).encode()  # a message that can be printed
        return str(error)
    finally:
        (folder / name).unlink()


# --- manifests


@few(150)
@given(rows=st.lists(ROWS | VALUES, max_size=3))
def test_any_rows_of_a_jsonl_manifest_are_read_or_refused(music: Path, rows: list[Any]):
    content = "\n".join(json.dumps(row) for row in rows).encode()
    tracks = scan(music, "manifest.jsonl", content)
    for track in tracks if isinstance(tracks, list) else []:
        if not track.stamp:  # a file that is not there is quarantined
            assert [type(result) for _, result in _segment(track, music)] == [FileResult]


def _segment(track: Track, folder: Path) -> Iterator[tuple[str, Any]]:
    return segment_file(track, open_folder(str(folder)), ENCODING, known_digests=frozenset())


@few(80)
@given(
    columns=st.lists(st.sampled_from(COLUMNS) | TEXTS, min_size=1, max_size=3),
    rows=st.lists(st.lists(st.sampled_from(["a.wav", "train", "90"]) | TEXTS, min_size=3, max_size=3), max_size=2),
)
def test_any_rows_of_a_csv_manifest_are_read_or_refused(music: Path, columns: list[str], rows: list[list[str]]):
    stream = io.StringIO()
    cut = [row[: len(columns)] for row in rows]
    csv.writer(stream, escapechar="\\").writerows([["file", *columns], *(["a.wav", *row] for row in cut)])
    scan(music, "manifest.csv", stream.getvalue().encode())


@few(40)
@given(rows=st.lists(st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=4), min_size=1, max_size=3))
def test_any_rows_of_a_parquet_manifest_are_read_or_refused(music: Path, rows: list[dict[str, Any]]):
    stream = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_pylist(rows), stream)
    except (pa.ArrowException, UnicodeError, OverflowError, TypeError):
        assume(False)
    scan(music, "manifest.parquet", stream.getvalue())


@few(60)
@given(name=st.sampled_from(["manifest.csv", "manifest.jsonl", "manifest.parquet"]), content=st.binary(max_size=60))
def test_any_bytes_as_a_manifest_are_refused_or_read(music: Path, name: str, content: bytes):
    scan(music, name, content)


@few(60)
@given(form=st.sampled_from(["csv", "jsonl", "parquet"]), caption=TEXTS, title=TEXTS)
def test_a_caption_of_a_manifest_reaches_the_shard_to_the_byte(music: Path, form: str, caption: str, title: str):
    assume(form != "csv" or "\0" not in caption + title)  # zeros are no text of a CSV
    row = {"file": "a.wav", "caption": caption, "title": title}
    tracks = scan(music, f"manifest.{form}", write_manifest(row, form))
    assert isinstance(tracks, list), tracks
    (track,) = tracks
    assert track.caption == ("" if is_missing(caption) else caption)
    assert track.title == (title if title.strip() else "")
    if track.caption:
        assert store(track.caption) == track.caption


def write_manifest(row: dict[str, str], form: str) -> bytes:
    if form == "jsonl":
        return json.dumps(row).encode()
    if form == "parquet":
        stream = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([row]), stream)
        return stream.getvalue()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(row))
    writer.writeheader()
    writer.writerow(row)
    return text.getvalue().encode()


def store(caption: str) -> str:
    """Return a caption as it is read from a shard."""
    tensor, one = np.zeros((1, 2, 2), np.float16), np.zeros(1, np.float32)
    texts = [np.asarray([text], dtype=object) for text in (caption, "a.wav", "a")]
    rows = FullRows(
        tensor, tensor[0, :1], tensor, tensor[0, :1] > 0, one, one.astype(np.int8),
        caption=texts[0], track=texts[1], composition=texts[2], start_seconds=one,
    )  # fmt: skip
    table = pq.read_table(pa.BufferReader(to_parquet(rows)))
    return str(table["caption"].to_pylist()[0])


# --- sidecars and tags


def describe(folder: Path, *sidecars: str) -> dict[str, Any] | str:
    track = Track("a.wav", path="a.wav", sidecars=sidecars)
    try:
        return read_metadata(track, io.BytesIO(SILENCE), open_folder(str(folder)))
    except ValueError as error:
        return str(error)


@few(80)
@given(fields=ROWS | VALUES)
def test_any_json_sidecar_is_read_or_a_reason_to_leave_the_track_out(tmp_path: Path, fields: Any):
    (tmp_path / "a.json").write_text(json.dumps(fields))
    facts = describe(tmp_path, "a.json")
    json.dumps(facts, allow_nan=False).encode()  # as the journal keeps it


@few(60)
@given(name=st.sampled_from(["a.json", "a.txt"]), content=st.binary(max_size=60) | TEXTS.map(str.encode))
def test_any_bytes_as_a_sidecar_are_read_or_a_reason_to_leave_the_track_out(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    describe(tmp_path, name)


@few(50)
@given(text=TEXTS)
def test_a_text_sidecar_is_the_caption_but_for_blanks_at_its_ends(tmp_path: Path, text: str):
    (tmp_path / "a.txt").write_bytes(text.encode())
    facts = describe(tmp_path, "a.txt")
    if "\0" in text:
        assert "zero bytes" in facts
    elif not is_missing(text.removeprefix("\ufeff")):
        assert isinstance(facts, dict)
        assert facts["caption"] == text.removeprefix("\ufeff").strip()


@few(40)
@given(genre=TEXTS, title=TEXTS, form=st.sampled_from(["WAV", "FLAC", "OGG"]))
def test_a_caption_of_tags_is_what_the_tags_say(genre: str, title: str, form: str):
    assume("\0" not in genre + title)  # it separates values
    content = write_tags(form, genre, title)
    expected = ", ".join(text.strip() for text in (genre, title) if text.strip())
    assert read_tag_caption(io.BytesIO(content)) == expected


def write_tags(form: str, genre: str, title: str) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(4000), 44100, format=form)
    stream.seek(0)
    file = mutagen.File(stream)
    if isinstance(file, WAVE):
        file.add_tags()
        file.tags.add(TCON(encoding=3, text=[genre]))
        file.tags.add(TIT2(encoding=3, text=[title]))
    else:
        file["genre"], file["title"] = [genre], [title]
    stream.seek(0)
    file.save(stream)
    return stream.getvalue()


@few(40)
@given(
    form=st.sampled_from(["WAV", "FLAC", "OGG"]),
    changes=st.lists(st.tuples(st.integers(0, 5000), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4),
)
def test_damaged_tags_never_end_a_run(form: str, changes: list[tuple[int, bytes]]):
    content = bytearray(write_tags(form, "jazz ♯", "Blue"))
    for position, new in changes:
        start = position % len(content)
        content[start : start + len(new)] = new
    read_tag_caption(io.BytesIO(bytes(content))).encode()


# --- prompts and clips


def make_clip(prompt: str, seed: int = 0) -> GeneratedClip:
    return GeneratedClip(prompt, np.full((1, 8), 0.5, np.float32), 44100, model_id="a" * 16, steps=4, seed=seed)


def read_comment(path: Path) -> dict[str, Any]:
    """Return the details that a WAV of ours holds, read without our code."""
    content = path.read_bytes()
    at = content.rindex(b"ICMT")
    size = int.from_bytes(content[at + 4 : at + 8], "little")
    return dict(json.loads(content[at + 8 : at + 8 + size].rstrip(b"\0")))


@few(80)
@given(prompt=TEXTS, seed=st.integers(0, 2**31))
def test_a_prompt_is_in_the_clip_to_the_byte_and_its_name_is_one_of_a_file(tmp_path: Path, prompt: str, seed: int):
    path = write_clip(make_clip(prompt, seed), tmp_path)
    assert path.parent == tmp_path
    assert len(os.fsencode(path.name)) <= 255
    assert path.name.isprintable()
    assert read_comment(path)["prompt"] == prompt


@few(60)
@given(prompts=st.lists(TEXTS, min_size=1, max_size=4, unique=True))
def test_names_of_clips_differ_and_find_their_prompts_again(prompts: list[str]):
    names = [make_clip_name(make_clip(prompt)) + ".wav" for prompt in prompts]
    assert len(set(names)) == len(prompts)
    captions = captions_from_names(names)
    assert len(match_prompts(captions, prompts)) == len(prompts)


@few(200)
@given(prompt=ANY_TEXTS)
def test_a_prompt_is_understood_or_refused(prompt: str):
    try:
        words = parse_prompt(prompt)
    except UserError:
        return
    assert words.tempo_bpm is None or math.isfinite(words.tempo_bpm)
    assert words.key_name is None or parse_prompt(words.key_name).key == words.key


# --- settings, names and filters


@few(100)
@given(text=TEXTS)
def test_a_text_setting_is_kept_to_the_byte_unless_it_is_quoted_or_empty(text: str):
    key, value = parse_override(CorpusStage, f"corpus.folder={text}")
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    assert key == "corpus.folder"
    if not is_quoted:
        assert value == text


KEYS = st.sampled_from(["generate.seconds", "generate.prompts", "generate.schedule", "name", "x"]) | TEXTS


@few(60)
@given(key=KEYS, value=TEXTS)
def test_any_override_is_a_setting_or_refused(key: str, value: str):
    try:
        load_config(GenerateStage, None, [f"{key}={value}"])
    except ConfigError:
        return


@few(150)
@given(text=ANY_TEXTS)
def test_a_reference_is_read_printed_and_read_again_as_the_same(text: str):
    try:
        reference = parse_reference(text)
    except RegistryError:
        return
    if reference is not None:
        assert parse_reference(str(reference)) == reference


COMPARISONS = st.tuples(
    st.sampled_from(FIELDS) | st.sampled_from(["steps.p_gen.kind", "nosuch", "learning_rate"]),
    st.sampled_from(["<", "<=", ">", ">=", "=", "==", "!=", "~"]),
    st.sampled_from(["1", "5e-5", "1e999", "nan", "-inf", "2026-11-29", "0001-01-01", "9999-12-31T23:59", "S"]) | TEXTS,
)


@few(150)
@given(comparisons=st.lists(COMPARISONS, max_size=3))
def test_a_filter_is_read_printed_and_read_again_as_the_same(comparisons: list[tuple[str, str, str]]):
    text = " and ".join(f'{field} {operator} "{value}"' for field, operator, value in comparisons)
    try:
        clauses = parse_filter(text)
    except RegistryError:
        return
    printed = " and ".join(f'{clause.field} {clause.operator} "{clause.value}"' for clause in clauses)
    assert parse_filter(printed) == clauses


@few(150)
@given(text=ANY_TEXTS)
def test_any_filter_is_read_or_refused(text: str):
    try:
        parse_filter(text)
    except RegistryError:
        return
