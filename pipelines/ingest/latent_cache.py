"""A content-addressed cache of latents, so that no audio file is encoded twice.

Below the storage root, one folder per encoding (codec, window, loudness, ...):

    encoded/<key>/latents/<BLAKE3 of the file>-<segment>.parquet    written once, never changed
    encoded/<key>/journal/*.jsonl                                    records of files and contents

Segments are written atomically. The journal only speeds up later runs: without it, files are read and decoded again,
and existing segments are found.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.parquet_tensors import Array, read_array, serialize_table
from presto_core.artifacts.fast_path import try_read
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import StoreError, read_bytes, write_bytes


@dataclass(frozen=True)
class IngestFailure:
    """Why a file has no rows.

    Attributes:
        stage: phase that failed: fetch, describe, decode or encode.
        error: name of the exception's class.
        message: the problem, in one line.
    """

    stage: str
    error: str
    message: str


WORKER_DIED = IngestFailure("fetch", "WorkerDied", "a worker died each time it had this file in hand")


@dataclass(frozen=True)
class EncodedContent:
    """The result of encoding one content, independent of file names.

    Attributes:
        digest: BLAKE3 of the file.
        rows: windows with music in each segment.
        silent: number of silent windows, which are dropped.
        seconds: length of the audio.
        failure: why it cannot be used, or None.
        decoder: versions of the decoders; after a failure, other versions try again.
    """

    digest: str
    rows: tuple[int, ...] = ()
    silent: int = 0
    seconds: float = 0.0
    failure: IngestFailure | None = None
    decoder: str = ""


@dataclass(frozen=True)
class SourceRecord:
    """The content digest of one source file, and the metadata from file and sidecar."""

    uri: str
    stamp: str
    digest: str
    facts: dict[str, Any] = field(default_factory=dict)
    failure: IngestFailure | None = None


class LatentCache:
    """The encoded audio of one encoding, and its journal."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.source_records: dict[str, SourceRecord] = {}
        self.contents: dict[str, EncodedContent] = {}
        self._unsaved: list[dict[str, Any]] = []
        self._journals: list[str] = []

    def load(self) -> None:
        """Read the journal."""
        infos = self._journal.list_files(missing_ok=True)
        self._journals = sorted(i.base_name for i in infos if i.base_name.endswith(".jsonl"))
        for name in self._journals:
            try:
                lines = read_bytes(self._journal, name).decode().split("\n")
            except StoreError:
                if self._journal.exists(name):
                    raise
                continue  # another run has just compacted it; missing records only cost time
            for line in filter(None, lines):
                self._apply(json.loads(line))

    def add(self, *, source_record: SourceRecord | None = None, content: EncodedContent | None = None) -> None:
        """Add records in memory; `save` writes them."""
        for kind, value in (("seen", source_record), ("content", content)):
            if value is not None:
                entry = {"kind": kind, **asdict(value)}
                self._apply(entry)
                self._unsaved.append(entry)

    def save(self) -> None:
        """Write the records added since the last call."""
        if not self._unsaved:
            return
        name = f"{time.time_ns():020d}-{os.getpid()}.jsonl"
        _write_lines(self._journal, name, self._unsaved)
        self._journals.append(name)
        self._unsaved = []

    def compact(self) -> None:
        """Merge all journal files into one."""
        self.save()
        if len(self._journals) < 2:
            return
        entries = [{"kind": "content", **asdict(c)} for c in self.contents.values()]
        entries += [{"kind": "seen", **asdict(s)} for s in self.source_records.values()]
        old, self._unsaved = self._journals, entries
        self._journals = []
        self.save()
        for name in old:
            self._journal.delete_file(name)

    @property
    def _journal(self) -> Folder:
        return self.folder.child("journal")

    def _apply(self, entry: dict[str, Any]) -> None:
        kind, failure = entry["kind"], entry["failure"]
        fields = {k: v for k, v in entry.items() if k != "kind"} | {"failure": failure and IngestFailure(**failure)}
        if kind == "seen":
            self.source_records[entry["uri"]] = SourceRecord(**fields)
        else:
            self.contents[entry["digest"]] = EncodedContent(**fields | {"rows": tuple(entry["rows"])})


def segment_name(digest: str, segment: int) -> str:
    """Return the path of a segment's latents below the cache's folder."""
    return f"latents/{digest[:2]}/{digest}-{segment:05d}.parquet"


def write_segment(folder: Folder, digest: str, segment: int, *, latents: Array, start_seconds: Array) -> None:
    """Write latents [R, C, T], float16, of windows that start at `start_seconds` [R].

    Raises:
        StoreError: the folder cannot be written.
    """
    columns = {"latents": latents, "start_seconds": start_seconds.astype(np.float32)}
    write_bytes(folder, segment_name(digest, segment), serialize_table(columns))


def read_segment(folder: Folder, digest: str, segment: int, *, rows: int) -> tuple[Array, Array]:
    """Read the latents [R, C, T] and start_seconds [R] of a segment.

    Raises:
        StoreError: the segment is missing, damaged, or has another number of rows.
    """
    name = segment_name(digest, segment)
    hint = f"delete {folder.uri} and ingest again to re-encode it"
    try:
        table = _read_table(folder, name)
        latents, start_seconds = read_array(table, "latents"), read_array(table, "start_seconds")
    except (pa.ArrowException, OSError, KeyError) as error:
        why = " ".join(str(error).split())
        raise StoreError(f"encoded segment {folder.uri}/{name} is damaged ({why}); {hint}") from None
    if len(latents) != rows:
        raise StoreError(f"encoded segment {folder.uri}/{name} has {len(latents)} rows, expected {rows}; {hint}")
    return latents, start_seconds


def _read_table(folder: Folder, name: str) -> pa.Table:
    """Read a segment's table and verify its page checksums; in one request if possible."""

    def parse_table(content: bytes) -> pa.Table:
        return pq.read_table(pa.BufferReader(content), page_checksum_verification=True)

    with suppress(pa.ArrowException, OSError):
        if content := try_read(folder.fast_path, folder.file_path(name)):
            return parse_table(content)
    return parse_table(read_bytes(folder, name))


def _write_lines(folder: Folder, name: str, entries: list[dict[str, Any]]) -> None:
    write_bytes(folder, name, "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in entries).encode())
