"""The latent cache, its journal, and the data set planned from it; without audio and Ray."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.console import make_printable
from pipelines.ingest.bad_files import check_bad_fraction
from pipelines.ingest.curation import FILE_MISSING, CuratedTracks, curate, make_quarantine_table
from pipelines.ingest.encode import find_tracks_to_encode
from pipelines.ingest.latent_cache import (
    WORKER_DIED,
    EncodedContent,
    IngestFailure,
    LatentCache,
    SourceRecord,
    read_segment,
    segment_name,
    write_segment,
)
from pipelines.ingest.manifests import SourceError
from pipelines.ingest.segments import decoder_versions
from pipelines.ingest.shard_writer import CuratedTrack, plan_shards
from pipelines.ingest.sources import Track
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.store import StoreError

NO_AUDIO = IngestFailure("decode", "AudioError", "not readable as audio")


def track(name: str, **known: object) -> Track:
    given_ = {"source_uri": "/music", "path": name, "stamp": "1", "split": "train", "composition": name, **known}
    return Track(name, **given_)  # type: ignore[arg-type]


def content(name: str, **known: object) -> EncodedContent:
    return EncodedContent(f"sha of {name}", **{"rows": (3,), "seconds": 2.0, "decoder": decoder_versions(), **known})  # type: ignore[arg-type]


def make_source_record(name: str, digest: str = "", **known: object) -> SourceRecord:
    return SourceRecord(f"/music/{name}", "1", digest or f"sha of {name}", **known)  # type: ignore[arg-type]


@pytest.fixture
def pool(tmp_path: Path) -> LatentCache:
    return LatentCache(open_folder(str(tmp_path / "pool")))


def reload(pool: LatentCache) -> LatentCache:
    other = LatentCache(pool.folder)
    other.load()
    return other


# --- the journal


def test_saved_records_are_loaded_again(pool: LatentCache):
    pool.add(
        source_record=make_source_record("a", facts={"caption": "ü\n"}), content=content("a", rows=(3, 0, 2), silent=4)
    )
    pool.save()
    pool.add(source_record=make_source_record("b", failure=NO_AUDIO), content=content("b", failure=NO_AUDIO, rows=()))
    pool.save()
    assert (reload(pool).source_records, reload(pool).contents) == (pool.source_records, pool.contents)
    pool.add(source_record=make_source_record("c"))  # not saved
    assert reload(pool).source_records.keys() == {"/music/a", "/music/b"}


def test_the_later_record_counts_and_journals_are_merged(pool: LatentCache, tmp_path: Path):
    for rows in ((1,), (2,), (3,)):
        pool.add(content=content("a", rows=rows))
        pool.save()
    assert len(list((tmp_path / "pool/journal").iterdir())) == 3
    fresh = reload(pool)
    fresh.compact()
    assert len(list((tmp_path / "pool/journal").iterdir())) == 1
    assert reload(pool).contents["sha of a"].rows == (3,)


def test_an_empty_cache_has_no_records(pool: LatentCache):
    pool.load()
    pool.compact()
    assert not pool.source_records
    assert not Path(pool.folder.path).exists()


# --- what must be read


def test_only_new_and_changed_files_are_read(pool: LatentCache):
    pool.add(source_record=make_source_record("same"), content=content("same"))
    pool.add(source_record=replace(make_source_record("changed"), stamp="0"), content=content("changed"))
    pool.add(source_record=make_source_record("unfinished"))
    pool.add(source_record=make_source_record("bad"), content=content("bad", failure=NO_AUDIO))
    pool.add(
        source_record=make_source_record("bad once"),
        content=content("bad once", failure=NO_AUDIO, decoder="an older one"),
    )
    pool.add(
        source_record=make_source_record("bad sidecar", failure=IngestFailure("describe", "ValueError", "no JSON"))
    )
    names = ("same", "changed", "unfinished", "bad", "bad once", "bad sidecar", "new")
    missing = track("missing", stamp="")
    read = find_tracks_to_encode([*map(track, names), missing], pool)
    assert [t.file for t in read] == ["changed", "unfinished", "bad once", "new"]


# --- segments


def test_a_segment_comes_back_bit_for_bit_and_damage_is_found(pool: LatentCache, tmp_path: Path):
    latents = np.random.default_rng(0).standard_normal((3, 4, 8)).astype(np.float16)
    write_segment(pool.folder, "ab12", 1, latents=latents, start_seconds=np.array([0.0, 0.5, 1.5]))
    found, starts = read_segment(pool.folder, "ab12", 1, rows=3)
    assert np.array_equal(found, latents)
    assert starts.tolist() == [0.0, 0.5, 1.5]
    with pytest.raises(StoreError, match=r"ab12-00001\.parquet has 3 rows.* 4; .*pool"):
        read_segment(pool.folder, "ab12", 1, rows=4)
    path = tmp_path / "pool" / segment_name("ab12", 1)
    whole = path.read_bytes()
    for damaged in (b"", whole[:-9], whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"ab12-00001\.parquet"):
            read_segment(pool.folder, "ab12", 1, rows=3)


# --- what makes up a data set


def test_tracks_are_sorted_into_usable_bad_and_duplicates(pool: LatentCache):
    pool.add(
        source_record=make_source_record("a", facts={"caption": "found", "tempo_bpm": None, "licence": ""}),
        content=content("a"),
    )
    pool.add(source_record=make_source_record("a again", digest="sha of a"))
    pool.add(source_record=make_source_record("b"), content=content("b", failure=NO_AUDIO))
    pool.add(source_record=make_source_record("c", failure=IngestFailure("describe", "ValueError", "no JSON")))
    tracks = [track("a", tempo_bpm=90.0, licence="CC0"), *map(track, ("a again", "b", "c", "d")), track("e", stamp="")]
    found = curate(tracks, pool)
    (entry,) = found.entries
    assert (entry.track.caption, entry.track.tempo_bpm, entry.track.licence) == ("found", 90.0, "CC0")
    assert entry.track.seconds == 2.0
    assert found.duplicates == {"a again": "a"}
    assert {bad.file: bad.failure.stage for bad in found.bad} == {
        "b": "decode", "c": "describe", "d": "fetch", "e": "fetch"
    }  # fmt: skip
    assert [bad.failure for bad in found.bad[2:]] == [WORKER_DIED, FILE_MISSING]


def test_a_data_set_is_known_by_what_is_in_it_not_by_where_it_was(pool: LatentCache):
    pool.add(source_record=make_source_record("a"), content=content("a"))
    digest = curate([track("a")], pool).digest
    pool.add(source_record=replace(make_source_record("a"), uri="s3://b/a"), content=content("a"))
    assert curate([track("a", source_uri="s3://b")], pool).digest == digest
    for change in ({"caption": "x"}, {"split": "test"}, {"licence": "CC0"}):
        assert curate([track("a", **change)], pool).digest != digest
    pool.add(source_record=make_source_record("b"), content=content("b", failure=NO_AUDIO))
    assert curate([track("a"), track("b")], pool).digest != digest  # the quarantine is part of it


def test_exactly_the_allowed_share_of_bad_files_passes(pool: LatentCache):
    bad = curate([track(f"{i}.wav", stamp="") for i in range(29)], pool).bad
    check_bad_fraction(bad, 100, 0.29)  # 0.29 * 100 is below 29 in floating point
    with pytest.raises(SourceError, match=r"29 of 100 files .*max_bad_fraction=0\.28.*4\.wav: .* 24 more"):
        check_bad_fraction(bad, 100, 0.28)


def test_names_are_shown_on_one_line_and_kept_as_they_are_in_the_table(pool: LatentCache):
    bad = curate([track("two\nlines\t.wav", stamp="")], pool).bad
    assert make_printable("two\nlines\t馬.wav") == "two\\nlines\\t馬.wav"
    assert make_quarantine_table(bad).column("file").to_pylist() == ["two\nlines\t.wav"]
    with pytest.raises(SourceError) as caught:
        check_bad_fraction(bad, 1, 0.0)
    assert "\n" not in str(caught.value)


# --- shards


def entries(rows: list[tuple[int, ...]]) -> list[CuratedTrack]:
    sides = ("train", "validation", "train", "test")
    return [
        CuratedTrack(track(f"{i}", split=sides[i % 4]), EncodedContent(f"{(7 * i) % 101:03d}", rows=r))
        for i, r in enumerate(rows)
    ]


@given(st.lists(st.lists(st.integers(0, 12), max_size=4).map(tuple), max_size=20), st.integers(1, 15))
@settings(max_examples=200, deadline=None)
def test_shards_are_full_and_hold_every_row_once_in_the_order_of_contents(rows: list[tuple[int, ...]], size: int):
    made = entries(rows)
    plans = plan_shards(made, rows_per_shard=size)
    for split in ("train", "validation", "test"):
        mine = [plan for plan in plans if plan.split == split]
        counts = [sum(part.stop - part.start for part in plan.parts) for plan in mine]
        assert set(counts[:-1]) <= {size}
        assert all(0 < count <= size for count in counts)
        planned = [
            (part.digest, part.segment, row)
            for plan in mine
            for part in plan.parts
            for row in range(part.start, part.stop)
        ]
        expected = sorted(
            (entry.content.digest, segment, row)
            for entry in made
            if entry.track.split == split
            for segment, count in enumerate(entry.content.rows)
            for row in range(count)
        )
        assert planned == expected
    assert len({plan.name for plan in plans}) == len(plans)


def test_the_plan_does_not_depend_on_the_order_of_files():
    made = entries([(5,), (4, 3), (2,), (9,), (1, 1)])
    assert plan_shards(made, rows_per_shard=4) == plan_shards(made[::-1], rows_per_shard=4)


def test_a_digest_is_json_of_plain_values(pool: LatentCache):
    assert len(CuratedTracks([], [], {}).digest) == 64
    json.dumps(make_quarantine_table([]).to_pylist())
