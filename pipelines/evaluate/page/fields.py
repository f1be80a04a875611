"""Reads values of a report that anyone may have written: of the type that the page needs, or the report is refused."""

from __future__ import annotations

import sys
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

from presto_core.errors import UserError


class ReportError(UserError):
    """A report cannot be shown; the message names the file or key, and the fix."""


def read_list(values: dict[str, Any], key: str) -> list[Any]:
    """The list under a key; empty if there is none.

    Raises:
        ReportError: it is something else.
    """
    return _read_typed(values, key, list)


def read_rows(values: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The list of mappings under a key; see `read_list`."""
    rows = read_list(values, key)
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise _make_error(f"{key}[{number}]", row, dict)
    return rows


def read_mapping(values: dict[str, Any], key: str) -> dict[str, Any]:
    """The mapping under a key; see `read_list`."""
    return _read_typed(values, key, dict)


def read_text(values: dict[str, Any], key: str) -> str:
    """The value under a key as text; empty if there is none."""
    value = values.get(key)
    return "" if value is None else str(value)


def read_number(values: dict[str, Any], key: str) -> float | None:
    """The finite number under a key; None if it is missing, NaN, infinite or no number."""
    value = values.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None  # false for NaN


def read_web_address(values: dict[str, Any], key: str) -> str:
    """The address under a key if a browser opens it as a page: http or https; empty otherwise."""
    text = read_text(values, key)
    try:
        return text if urlsplit(text).scheme in ("http", "https") else ""
    except ValueError:
        return ""


def find_file(folder: Path, name: object, suffix: str) -> str:
    """Return a file's address relative to the page; empty if it is missing, outside the folder or of another type."""
    if not isinstance(name, str) or "\0" in name or "\\" in name:
        return ""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.suffix != suffix:
        return ""
    local = folder / path
    is_inside = local.resolve().is_relative_to(folder.resolve())  # a link may lead outside
    return quote(str(path)) if is_inside and local.is_file() else ""


def _read_typed(values: dict[str, Any], key: str, wanted: type) -> Any:
    value = values.get(key)
    if value is None:
        return wanted()
    if not isinstance(value, wanted):
        raise _make_error(key, value, wanted)
    return value


def _make_error(key: str, value: object, wanted: type) -> ReportError:
    kind = "a list" if wanted is list else "an object"
    return ReportError(f"report.json is damaged: {key} is {str(value)[:40]!r}, not {kind}; fetch the report again")
