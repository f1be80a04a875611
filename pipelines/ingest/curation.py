"""Select the tracks of a data set: usable ones without duplicates, and rejected ones with their reasons."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.ingest.latent_cache import WORKER_DIED, IngestFailure, LatentCache
from pipelines.ingest.shard_writer import CuratedTrack
from pipelines.ingest.sidecars import IGNORED_KEYS, add_sidecar_fields
from pipelines.ingest.sources import Track

# how far a manifest's duration may be from the decoded one: whole seconds, and padding of encoders
DURATION_TOLERANCE_S, DURATION_TOLERANCE = 1.0, 0.01
# location and origin of a track, on which its rows do not depend
LOCATION_FIELDS = (
    "source_uri",
    "path",
    "stamp",
    "sidecars",
    "problem",
    "manifest_fields",
)

FILE_MISSING = IngestFailure("fetch", "FileNotFoundError", "is listed in the manifest but not there")


@dataclass(frozen=True)
class RejectedFile:
    """A file without rows in the data set, and the reason."""

    file: str
    uri: str
    failure: IngestFailure


@dataclass(frozen=True)
class CuratedTracks:
    """The tracks of a data set.

    Attributes:
        entries: usable tracks, each content once.
        bad: files that cannot be used.
        duplicates: file -> the earlier file with the same bytes.
        ignored_keys: key of sidecars that is not read -> number of files with it.
    """

    entries: list[CuratedTrack]
    bad: list[RejectedFile]
    duplicates: dict[str, str]
    ignored_keys: Counter[str] = field(default_factory=Counter)

    @property
    def digest(self) -> str:
        """Return the hash of contents and metadata, which does not depend on locations."""
        body = [
            [make_track_row(entry) for entry in self.entries],
            [[bad.file, asdict(bad.failure)] for bad in self.bad],
            sorted(self.duplicates.items()),
        ]
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def curate(tracks: list[Track], cache: LatentCache) -> CuratedTracks:
    """Sort tracks, in order, into usable ones, bad ones and duplicates."""
    entries, bad, duplicates, first_files = [], [], dict[str, str](), dict[str, str]()
    ignored_keys = Counter[str]()
    for track in tracks:
        record = cache.source_records.get(track.uri)
        if record is not None and record.stamp == track.stamp:
            ignored_keys.update(record.facts.get(IGNORED_KEYS, ()))
        failure = find_failure(track, cache)
        content = cache.contents.get(record.digest) if record is not None else None
        if failure is not None or record is None or content is None:
            bad.append(RejectedFile(track.file, track.uri, failure or WORKER_DIED))
        elif content.digest in first_files:
            duplicates[track.file] = first_files[content.digest]
        else:
            first_files[content.digest] = track.file
            known = add_sidecar_fields(track, record.facts)
            entries.append(CuratedTrack(replace(known, seconds=content.seconds), content))
    return CuratedTracks(entries, bad, duplicates, ignored_keys)


def find_failure(track: Track, cache: LatentCache) -> IngestFailure | None:
    """Return why a track cannot be used, as far as the cache knows; a track without a result died with its worker."""
    record = cache.source_records.get(track.uri)
    if record is None or record.stamp != track.stamp:
        missing = IngestFailure("fetch", "FileNotFoundError", track.problem) if track.problem else FILE_MISSING
        return WORKER_DIED if track.stamp else missing
    if record.failure is not None:
        return record.failure
    content = cache.contents.get(record.digest)
    if content is None:
        return WORKER_DIED
    return content.failure or _check_duration(track, content.seconds)


def _check_duration(track: Track, seconds: float) -> IngestFailure | None:
    """Return a failure if the manifest states another length than the decoded one."""
    stated_s = track.seconds
    if not stated_s or abs(stated_s - seconds) <= max(DURATION_TOLERANCE_S, DURATION_TOLERANCE * stated_s):
        return None
    message = f"lasts {seconds:.2f} s, but its manifest has duration_seconds={stated_s:g}; correct one of them"
    return IngestFailure("decode", "DurationError", message)


def make_track_row(entry: CuratedTrack) -> dict[str, Any]:
    """Return a track as the data set lists it."""
    fields = {name: value for name, value in asdict(entry.track).items() if name not in LOCATION_FIELDS}
    if not fields["captions"]:  # tracks of one caption keep the row, and so the digest, that they had before wordings
        del fields["captions"]
    return fields | {"blake3": entry.content.digest, "rows": sum(entry.content.rows)}


def make_quarantine_table(bad: list[RejectedFile]) -> pa.Table:
    """Return the bad files as a table with columns uri, file, stage, error and message."""
    rows = [{"uri": b.uri, "file": b.file, **asdict(b.failure)} for b in bad]
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, pa.string()) for name in QUARANTINE_COLUMNS]))


QUARANTINE_COLUMNS = ("uri", "file", "stage", "error", "message")


def to_parquet(table: pa.Table) -> bytes:
    """Serialize a table as a Parquet file."""
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()
