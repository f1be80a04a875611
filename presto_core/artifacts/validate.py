"""Rules for the content of an artifact: safe file names, and files of the type their names claim; nothing executable.

An artifact holds data only. No HTML or SVG is data: a page is rendered from the data by the reader's own code. Applied
before an artifact is written or pushed, and before a pulled one is used. A pickle is rejected under any name.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath
from typing import BinaryIO

import pyarrow as pa
import soundfile

from presto_core.artifacts import formats
from presto_core.artifacts.formats import UnsafeArtifactError as UnsafeArtifactError

NAME_LENGTH, FILE_COUNT = 200, 1_000_000
PAGE_TYPES = (".html", ".htm", ".xhtml", ".svg", ".svgz")
# what parsers raise on content that is not theirs
_PARSER_ERRORS = (
    struct.error, zlib.error, soundfile.LibsndfileError, pa.ArrowException, RecursionError, MemoryError, EOFError,
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
)  # fmt: skip
_PATH_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]*")
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}

CHECKS: dict[str, Callable[[BinaryIO, int], None]] = {
    ".safetensors": formats.check_safetensors,
    ".parquet": formats.check_parquet,
    ".json": formats.check_json,
    ".jsonl": formats.check_json_lines,
    ".yaml": formats.check_yaml,
    ".yml": formats.check_yaml,
    ".wav": formats.check_wav,
    ".png": formats.check_png,
}


def check_no_page(names: Iterable[str]) -> None:
    """Refuse to write a page or a drawing that can hold a script into an artifact; raises UnsafeArtifactError."""
    if pages := sorted(name for name in names if PurePosixPath(name.lower()).suffix in PAGE_TYPES):
        raise UnsafeArtifactError(
            f"{pages[0]!r} is a page, which no artifact holds; store the data it shows, and render it from there"
        )


def check_names(names: Sequence[object]) -> None:
    """Check that the file names of an artifact are relative, portable, of a known type, and do not clash.

    Raises:
        UnsafeArtifactError: a name breaks a rule.
    """
    if len(names) > FILE_COUNT:
        raise UnsafeArtifactError(f"the artifact lists {len(names)} files, more than {FILE_COUNT}")
    seen: dict[str, str] = {"manifest.json": "manifest.json"}
    for name in names:
        check_name(name)
        if other := seen.get(str(name).lower()):
            raise UnsafeArtifactError(f"file names {other!r} and {name!r} are the same file on some systems")
        seen[str(name).lower()] = str(name)
    for lowered, name in seen.items():
        if above := next((p for p in PurePosixPath(lowered).parents if str(p) in seen), None):
            raise UnsafeArtifactError(f"file name {name!r} is inside {seen[str(above)]!r}, which is a file")


def check_name(name: object) -> None:
    """Check one file name; raises UnsafeArtifactError."""
    if not isinstance(name, str) or not name:
        raise UnsafeArtifactError(f"file name {name!r} is not a non-empty string")
    quoted = repr(name[:80])
    if len(name) > NAME_LENGTH:
        raise UnsafeArtifactError(f"file name {quoted}... is longer than {NAME_LENGTH} characters")
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        raise UnsafeArtifactError(f"file name {quoted} is absolute; use a path inside the artifact")
    parts = name.split("/")
    if ".." in re.split(r"[/\\]", name):
        raise UnsafeArtifactError(f"file name {quoted} is outside the artifact")
    if not all(_PATH_PART.fullmatch(part) for part in parts):
        raise UnsafeArtifactError(
            f"file name {quoted} has a part that is empty, hidden, or has characters other than A-Z a-z 0-9 _ . + = -"
        )
    if any(part.endswith(".") or part.split(".")[0].lower() in _DEVICES for part in parts):
        raise UnsafeArtifactError(f"file name {quoted} has a device name or a trailing dot, which some systems change")
    if PurePosixPath(name).suffix not in CHECKS:
        raise UnsafeArtifactError(f"file {quoted} has an unknown type; use one of {', '.join(CHECKS)}")


def check_content(name: str, stream: BinaryIO, size: int) -> None:
    """Check that a file has the type its name claims, to the extent its reader relies on it.

    Args:
        stream: seekable; its position does not matter.
        size: in bytes.

    Raises:
        UnsafeArtifactError: it does not; the message names the file.
    """
    stream.seek(0)
    try:
        CHECKS[PurePosixPath(name).suffix](stream, size)
    except UnsafeArtifactError as error:
        raise UnsafeArtifactError(f"{name} is rejected: {error}") from None
    except _PARSER_ERRORS as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UnsafeArtifactError(f"{name} is rejected: it cannot be read as the type it claims ({reason})") from None
