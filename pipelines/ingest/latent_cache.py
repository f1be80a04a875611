"""What has been encoded already: latents kept by the content of the audio, so that no file is ever encoded twice.

Below the storage root, one folder for each way of encoding (codec, window, loudness, ...):

    encoded/<way>/latents/<BLAKE3 of the file>-<segment>.parquet    written once, never changed
    encoded/<way>/journal/*.jsonl                                    what is known of files and of contents

A segment is there as a whole or not at all. The journal makes a second run quick and holds no truth of its own: without
it, files are read and decoded again, and segments that are there are found.
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

from pipelines.data.parquet_tensors import (
    Array,
    read_array,
    serialize_table,
)
from presto_core.artifacts.fast_path import try_read
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import (
    StoreError,
    read_bytes,
    write_bytes,
)


@dataclass(frozen=True)
class IngestFailure:
    """Why a file gives no rows.

    Attributes:
        stage: describe, decode or encode.
        error: name of the exception's class.
        message: one sentence.
    """

    stage: str
    error: str
    message: str


WORKER_DIED = IngestFailure("fetch", "WorkerDied", "a worker died each time it had this file in hand")


@dataclass(frozen=True)
class EncodedContent:
    """What one file's audio came to, whatever the file is called.

    Attributes:
        digest: BLAKE3 of the file.
        rows: windows with music in each segment.
        silent: windows that were left out.
        seconds: length of the audio.
        failure: why it cannot be used, or None.
        decoder: versions of what decoded it; another one may do better where this one failed.
    """

    digest: str
    rows: tuple[int, ...] = ()
    silent: int = 0
    seconds: float = 0.0
    failure: IngestFailure | None = None
    decoder: str = ""


@dataclass(frozen=True)
class SourceRecord:
    """What was found behind a name: the content, and what file and sidecar tell of it."""

    uri: str
    stamp: str
    digest: str
    facts: dict[str, Any] = field(default_factory=dict)
    failure: IngestFailure | None = None


class LatentCache:
    """Encoded audio of one way of encoding, and the journal of it."""

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
                continue  # another run has just made one of many; what this one does not know, it finds
            for line in filter(None, lines):
                self._apply(json.loads(line))

    def add(self, *, source_record: SourceRecord | None = None, content: EncodedContent | None = None) -> None:
        """Note what was found; `save` makes it last."""
        for kind, value in (("seen", source_record), ("content", content)):
            if value is not None:
                entry = {"kind": kind, **asdict(value)}
                self._apply(entry)
                self._unsaved.append(entry)

    def save(self) -> None:
        """Write what was noted since the last time."""
        if not self._unsaved:
            return
        name = f"{time.time_ns():020d}-{os.getpid()}.jsonl"
        _write_lines(self._journal, name, self._unsaved)
        self._journals.append(name)
        self._unsaved = []

    def compact(self) -> None:
        """Make one journal of many."""
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
    """Where a segment's latents are, below the pool's folder."""
    return f"latents/{digest[:2]}/{digest}-{segment:05d}.parquet"


def write_segment(folder: Folder, digest: str, segment: int, *, latents: Array, start_seconds: Array) -> None:
    """Keep latents [R, C, T] float16 of windows that begin at `start_seconds` [R].

    Raises:
        StoreError: the place cannot be written.
    """
    columns = {"latents": latents, "start_seconds": start_seconds.astype(np.float32)}
    write_bytes(folder, segment_name(digest, segment), serialize_table(columns))


def read_segment(folder: Folder, digest: str, segment: int, *, rows: int) -> tuple[Array, Array]:
    """Latents [R, C, T] and start_seconds [R] of a segment.

    Raises:
        StoreError: it is missing, damaged, or holds another number of rows.
    """
    name = segment_name(digest, segment)
    hint = f"delete {folder.uri} and ingest again: it is encoded anew"
    try:
        table = _read_table(folder, name)
        latents, start_seconds = read_array(table, "latents"), read_array(table, "start_seconds")
    except (pa.ArrowException, OSError, KeyError) as error:
        why = " ".join(str(error).split())
        raise StoreError(f"encoded segment {folder.uri}/{name} is damaged ({why}); {hint}") from None
    if len(latents) != rows:
        raise StoreError(f"encoded segment {folder.uri}/{name} holds {len(latents)} rows, not {rows}; {hint}")
    return latents, start_seconds


def _read_table(folder: Folder, name: str) -> pa.Table:
    """A segment's table, its pages checked; in one request where that goes well."""

    def parse_table(content: bytes) -> pa.Table:
        return pq.read_table(pa.BufferReader(content), page_checksum_verification=True)

    with suppress(pa.ArrowException, OSError):
        if content := try_read(folder.fast_path, folder.file_path(name)):
            return parse_table(content)
    return parse_table(read_bytes(folder, name))


def _write_lines(folder: Folder, name: str, entries: list[dict[str, Any]]) -> None:
    write_bytes(folder, name, "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in entries).encode())
