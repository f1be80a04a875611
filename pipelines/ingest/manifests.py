"""Manifests of a source: CSV, JSONL or Parquet files that list audio files and their metadata."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.console import console, print_warning
from pipelines.ingest.field_names import MANIFEST_FIELDS, describe_ignored, rename_fields, suggest_field
from pipelines.ingest.text_files import decode_text, parse_json
from pipelines.storage.filesystem import absolute_uri, open_source
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import read_bytes
from presto_core.errors import UserError

MANIFEST_STEM = "manifest"
HUGGING_FACE_STEM = "metadata"  # of image and audio folders
MAX_PROBLEMS_NAMED = 5  # bad rows that a message names

NumberedRows = list[tuple[int, dict[str, Any]]]
Problems = list[tuple[int, str]]


class SourceError(UserError):
    """A source of audio, or its manifest, cannot be used; the message names it and the line."""


@dataclass(frozen=True)
class Manifest:
    """A manifest's rows.

    Attributes:
        name: name of the file.
        unit: unit of numbering in its format: line or row.
        rows: number in the file and fields of each row, under the names that are read.
        problems: number and problem of each row that cannot be parsed.
        ignored: names of columns that are not read.
    """

    name: str
    unit: str
    rows: NumberedRows
    problems: Problems
    ignored: tuple[str, ...] = ()


def find_manifest(source: Folder, files: Collection[str], manifest_uri: str) -> Manifest | None:
    """Read the manifest at `manifest_uri`, otherwise the one in the source; None if there is none.

    A `metadata.csv` with a column `file_name`, as Hugging Face's audio folders have it, is a manifest, too.

    Raises:
        SourceError: its format is unknown, it is damaged, it has no column `file`, or the source has several.
        StoreError: `manifest_uri` does not exist.
    """
    if manifest_uri:
        where, _, name = absolute_uri(manifest_uri).rpartition("/")
        return _read_manifest(open_source(where or "/", setting="ingest.manifest"), name)
    for stem in (MANIFEST_STEM, HUGGING_FACE_STEM):
        present = [stem + suffix for suffix in FORMATS if stem + suffix in files]
        if len(present) > 1:
            raise SourceError(f"{source.uri} has {' and '.join(present)}; keep one, or set ingest.manifest=...")
        if present:
            return _read_manifest(source, present[0]) if stem == MANIFEST_STEM else _read_metadata(source, present[0])
    for name in sorted(files):
        path = PurePosixPath(name)
        if path.stem == HUGGING_FACE_STEM and path.suffix in FORMATS:
            print_warning(f"{name} is not read, only one at the top; name its folder in ingest.source to use it")
    return None


def _read_metadata(source: Folder, name: str) -> Manifest | None:
    """Read metadata.csv as a manifest if it lists files; otherwise print why it is not read."""
    try:
        manifest = _read_manifest(source, name)
    except SourceError as error:
        print_warning(f"{name} is not used as a manifest: {error}")
        return None
    console.print(f"{name} is used as the manifest of {source.uri}")
    return manifest


def raise_problems(manifest: Manifest, problems: Problems) -> None:
    """Raise SourceError with the first few problems of a manifest's rows and their count, if there are any."""
    if not problems:
        return
    named = [f"{manifest.unit} {number}{problem}" for number, problem in sorted(problems)[:MAX_PROBLEMS_NAMED]]
    if len(problems) == 1:
        raise SourceError(f"{manifest.name} {named[0]}")
    more = f" | and {len(problems) - len(named)} more" if len(problems) > len(named) else ""
    raise SourceError(f"{manifest.name} has {len(problems)} bad {manifest.unit}s: {' | '.join(named)}{more}")


def _read_manifest(folder: Folder, name: str) -> Manifest:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in FORMATS:
        raise SourceError(f"manifest {name!r} has an unsupported format; use one of {', '.join(FORMATS)}")
    unit, parse = FORMATS[suffix]
    original_rows, problems = parse(read_bytes(folder, name), name)
    rows, ignored = [], dict[str, None]()
    for number, original in original_rows:
        row, others = rename_fields(original, MANIFEST_FIELDS)
        rows.append((number, row))
        ignored |= dict.fromkeys(others)
    if rows and suffix != ".jsonl" and "file" not in rows[0][1]:
        have = ", ".join(map(repr, original_rows[0][1]))
        meant = next((other for other in ignored if suggest_field(other) == "file"), None)
        hint = f"rename {meant!r}" if meant is not None else "add it"
        raise SourceError(f"manifest {name} has no column 'file' (its columns: {have}); {hint}")
    if ignored:
        print_warning(f"manifest {name} has fields that are not read: {describe_ignored(ignored)}")
    return Manifest(name, unit, rows, problems, tuple(ignored))


def _decode_manifest(content: bytes, name: str) -> str:
    try:
        return decode_text(content)
    except ValueError as error:
        raise SourceError(f"manifest {name} {error}") from None


def _parse_jsonl(content: bytes, name: str) -> tuple[NumberedRows, Problems]:
    rows: NumberedRows = []
    problems: Problems = []
    for number, line in enumerate(_decode_manifest(content, name).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            problems.append((number, f" {error}; write one object per line"))
            continue
        if isinstance(row, dict):
            rows.append((number, row))
        else:
            problems.append((number, f" is of type {type(row).__name__}; write one object per line"))
    return rows, problems


def _parse_csv(content: bytes, name: str) -> tuple[NumberedRows, Problems]:
    text = _decode_manifest(content, name)
    rows: NumberedRows = []
    problems: Problems = []
    header = _read_header(text)
    if twice := [column for column, count in Counter(header).items() if count > 1 and column.strip()]:
        raise SourceError(f"manifest {name} has the column {twice[0]!r} twice; rename or remove one of them")
    padded = {column for column in header if column != column.strip()}
    skip_blanks = any(column.startswith(" ") for column in padded)  # as in `file, caption`, also before quotes
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, skipinitialspace=skip_blanks)
    try:
        for row in reader:
            if None in row or None in row.values():
                have = len([v for k, v in row.items() if k is not None and v is not None]) + len(row.get(None, []))
                wanted = len(reader.fieldnames or [])
                problems.append((reader.line_num, f" has {have} fields and the header {wanted}; make them equal"))
            else:
                rows.append((reader.line_num, {k: v.strip() if padded else v for k, v in row.items()}))
    except csv.Error as error:
        problems.append((reader.line_num, f" is not CSV: {error}; correct that line"))
    return rows, problems


def _read_header(text: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(text, newline=""), strict=True), [])
    except csv.Error:  # the reader of the rows reports it
        return []


def _parse_parquet(content: bytes, name: str) -> tuple[NumberedRows, Problems]:
    try:
        rows = pq.read_table(pa.BufferReader(content)).to_pylist()
    except pa.ArrowInvalid as error:
        why = " ".join(str(error).split())
        raise SourceError(f"manifest {name} is not a Parquet file: {why}; write it again") from None
    return list(enumerate(rows, 1)), []


FORMATS: dict[str, tuple[str, Callable[[bytes, str], tuple[NumberedRows, Problems]]]] = {
    ".jsonl": ("line", _parse_jsonl),
    ".csv": ("line", _parse_csv),
    ".parquet": ("row", _parse_parquet),
}
