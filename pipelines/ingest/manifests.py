"""Manifests of a source: CSV, JSONL or Parquet files that list audio files and their metadata."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.storage.filesystem import absolute_uri, open_folder
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import read_bytes
from presto_core.errors import UserError

MANIFEST_STEM = "manifest"

NumberedRows = list[tuple[int, dict[str, Any]]]


class SourceError(UserError):
    """A source of audio, or its manifest, cannot be used; the message names it and the line."""


@dataclass(frozen=True)
class Manifest:
    """A manifest's rows.

    Attributes:
        name: name of the file.
        unit: unit of numbering in its format: line or row.
        rows: number in the file and fields of each row.
    """

    name: str
    unit: str
    rows: NumberedRows


def find_manifest(source: Folder, files: Container[str], manifest_uri: str) -> Manifest | None:
    """Read the manifest at `manifest_uri`, otherwise the one in the source; None if there is none.

    Raises:
        SourceError: its format is unknown, it is damaged, it has no column `file`, or the source has several.
        StoreError: `manifest_uri` does not exist.
    """
    if manifest_uri:
        where, _, name = absolute_uri(manifest_uri).rpartition("/")
        return _read_manifest(open_folder(where or "/"), name)
    present = [MANIFEST_STEM + suffix for suffix in FORMATS if MANIFEST_STEM + suffix in files]
    if len(present) > 1:
        raise SourceError(f"{source.uri} has {' and '.join(present)}; keep one, or set ingest.manifest=...")
    return _read_manifest(source, present[0]) if present else None


def _read_manifest(folder: Folder, name: str) -> Manifest:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in FORMATS:
        raise SourceError(f"manifest {name!r} has an unsupported format; use one of {', '.join(FORMATS)}")
    unit, parse = FORMATS[suffix]
    try:
        rows = parse(read_bytes(folder, name), name)
    except UnicodeDecodeError as error:
        raise SourceError(f"manifest {name} is not UTF-8 text: {error}; save it as UTF-8") from None
    if rows and suffix != ".jsonl" and "file" not in rows[0][1]:
        have = ", ".join(map(repr, rows[0][1]))
        raise SourceError(f"manifest {name} has no column 'file' (its columns: {have}); add it")
    return Manifest(name, unit, rows)


def _parse_jsonl(content: bytes, name: str) -> NumberedRows:
    rows = []
    for number, line in enumerate(content.decode().split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise SourceError(f"{name} line {number} is not JSON: {error}; write one object per line") from None
        if not isinstance(row, dict):
            raise SourceError(f"{name} line {number} is of type {type(row).__name__}; write one object per line")
        rows.append((number, row))
    return rows


def _parse_csv(content: bytes, name: str) -> NumberedRows:
    reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                have = len([v for k, v in row.items() if k is not None and v is not None]) + len(row.get(None, []))
                wanted = len(reader.fieldnames or [])
                raise SourceError(
                    f"{name} line {reader.line_num} has {have} fields and the header {wanted}; make them equal"
                )
            rows.append((reader.line_num, dict(row)))
    except csv.Error as error:
        raise SourceError(f"{name} line {reader.line_num} is not CSV: {error}; correct that line") from None
    return rows


def _parse_parquet(content: bytes, name: str) -> NumberedRows:
    try:
        rows = pq.read_table(pa.BufferReader(content)).to_pylist()
    except pa.ArrowInvalid as error:
        why = " ".join(str(error).split())
        raise SourceError(f"manifest {name} is not a Parquet file: {why}; write it again") from None
    return list(enumerate(rows, 1))


FORMATS: dict[str, tuple[str, Callable[[bytes, str], NumberedRows]]] = {
    ".jsonl": ("line", _parse_jsonl),
    ".csv": ("line", _parse_csv),
    ".parquet": ("row", _parse_parquet),
}
