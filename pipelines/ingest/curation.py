"""Which of the tracks that were read make up a data set: the good ones once each, the bad ones listed with reasons."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.ingest.latent_cache import (
    DIED,
    Failure,
    Pool,
)
from pipelines.ingest.manifests import SourceError
from pipelines.ingest.shard_writer import Entry
from pipelines.ingest.sources import Track

NAMED = 5  # bad files that a sentence names
PLACES = ("place", "path", "stamp", "sidecar")  # of a track: where it was found, which its rows do not depend on

MISSING = Failure("fetch", "FileNotFoundError", "is listed in the manifest but not there")


@dataclass(frozen=True)
class Bad:
    """A file that gives no rows, and why."""

    file: str
    uri: str
    failure: Failure


@dataclass(frozen=True)
class Curated:
    """What there is for a data set.

    Attributes:
        entries: usable tracks, each content once.
        bad: files that cannot be used.
        doubles: file -> the file, named before it, that holds the same bytes.
    """

    entries: list[Entry]
    bad: list[Bad]
    doubles: dict[str, str]

    @property
    def digest(self) -> str:
        """Hash of contents and of what is known of them, wherever they are kept."""
        body = [
            [tracks_row(entry) for entry in self.entries],
            [[bad.file, asdict(bad.failure)] for bad in self.bad],
            sorted(self.doubles.items()),
        ]
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def curated(tracks: list[Track], pool: Pool) -> Curated:
    """Sort tracks, in order, into usable ones, bad ones and doubles."""
    entries, bad, doubles, first = [], [], dict[str, str](), dict[str, str]()
    for track in tracks:
        seen = pool.seen.get(track.uri)
        if seen is None or seen.stamp != track.stamp:
            bad.append(Bad(track.file, track.uri, DIED if track.stamp else MISSING))
            continue
        content = pool.contents.get(seen.digest)
        failure = seen.failure or (content.failure if content is not None else DIED)
        if failure is not None or content is None:
            bad.append(Bad(track.file, track.uri, failure or DIED))
        elif content.digest in first:
            doubles[track.file] = first[content.digest]
        else:
            first[content.digest] = track.file
            known = {name: value for name, value in seen.facts.items() if value}
            entries.append(Entry(replace(track, **known, seconds=content.seconds), content))
    return Curated(entries, bad, doubles)


def require_few_bad(bad: list[Bad], total: int, allowed: float) -> None:
    """Raises SourceError where the share of bad files is above what is allowed; it names the first few."""
    if len(bad) > allowed * total + 1e-9:
        named = "; ".join(f"{shown(b.file)}: {b.failure.message}" for b in bad[:NAMED])
        more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise SourceError(
            f"{len(bad)} of {total} files could not be used, more than ingest.max_bad_fraction={allowed:g} allows: "
            f"{named}{more}"
        )


def tracks_row(entry: Entry) -> dict[str, Any]:
    """A track as the data set lists it."""
    known = {name: value for name, value in asdict(entry.track).items() if name not in PLACES}
    return known | {"blake3": entry.content.digest, "rows": sum(entry.content.rows)}


def quarantine_table(bad: list[Bad]) -> pa.Table:
    """Bad files as a table: uri, file, stage, error, message."""
    rows = [{"uri": b.uri, "file": b.file, **asdict(b.failure)} for b in bad]
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, pa.string()) for name in QUARANTINE_COLUMNS]))


QUARANTINE_COLUMNS = ("uri", "file", "stage", "error", "message")


def to_parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


def shown(name: str) -> str:
    """A file's name on one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
