"""Finds versions by a filter: MLflow narrows by texts, numbers and times are compared here, all on the versions' tags.

A version's run can be deleted, and MLflow compares tags as texts only, so neither runs nor their metrics are asked.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from pipelines.registry import names
from pipelines.registry.catalog import Catalog, Version
from pipelines.registry.search_filter import (
    NUMBERS,
    REGISTRY_NAMES,
    SUBSTRING_FIELDS,
    TEXTS,
    Clause,
    parse_number,
    parse_period,
)
from pipelines.registry.version_settings import read_settings
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.manifest import read_artifact
from presto_core.errors import UserError

BATCH = 50  # versions whose settings are read together
SCAN_PAGE = 1000  # versions per request where all that match are needed, to sort them
DATASET_SIZES = ("rows", "hours")
COMPARE = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "!=": operator.ne,
}


def search_versions(catalog: Catalog, clauses: list[Clause], *, limit: int = 50, order: str = "") -> list[Version]:
    """Return versions that match all clauses: newest first, or smallest first by the number `order`."""
    found = _iter_matches(catalog, clauses, limit, is_sorted=bool(order))
    if not order:
        return list(islice(found, limit))
    numbers = [(_read_number(version, order), version) for version in found]
    ranked = sorted((n, i) for i, (n, _) in enumerate(numbers) if n is not None)
    unmeasured = [i for i, (n, _) in enumerate(numbers) if n is None]
    return [numbers[i][1] for i in [*(i for _, i in ranked), *unmeasured][:limit]]


def _iter_matches(catalog: Catalog, clauses: list[Clause], limit: int, *, is_sorted: bool) -> Iterator[Version]:
    settings = [clause for clause in clauses if clause.is_setting]
    facts = [clause for clause in clauses if not clause.is_setting]
    page_size = SCAN_PAGE if is_sorted else limit + 1
    candidates = catalog.iter_versions(**_make_conditions(facts), page_size=page_size)
    matches = (version for version in candidates if all(_matches(clause, version) for clause in facts))
    if not settings:
        yield from matches
        return
    while batch := list(islice(matches, BATCH)):
        for version, values in zip(batch, read_settings(catalog.client, batch), strict=True):
            if all(clause.field in values and _matches_setting(clause, values[clause.field]) for clause in settings):
                yield version


def _make_conditions(clauses: Iterable[Clause]) -> dict[str, Any]:
    """Return arguments of `find_versions` that leave out as much as MLflow can."""
    name, tags, present = "", dict[str, str](), [names.CONTENT]
    contained: dict[str, list[str]] = {}
    for clause in clauses:
        if clause.field == "name" and clause.operator == "=":
            name = clause.value
        elif clause.field in DATASET_SIZES:
            tags[names.KIND] = "dataset"
        elif clause.field in NUMBERS:
            present.append(f"{names.MEASURED}{REGISTRY_NAMES[clause.field]}")
        elif clause.field in TEXTS and _compares_substring(clause):
            contained.setdefault(TEXTS[clause.field], []).append(clause.value)
        elif clause.field in TEXTS and clause.operator == "=":
            tags[TEXTS[clause.field]] = clause.value
        elif clause.field in TEXTS:
            present.append(TEXTS[clause.field])
    return {"name": name, "tags": tags, "contained": contained, "present": present}


def _compares_substring(clause: Clause) -> bool:
    return clause.operator == "~" or (clause.field in SUBSTRING_FIELDS and clause.operator == "=")


def _matches(clause: Clause, version: Version) -> bool:
    if clause.field in NUMBERS:
        number = _read_number(version, clause.field)
        return number is not None and COMPARE[clause.operator](number, float(clause.value))
    if clause.field == "created":
        return _is_in_period(clause, version.created_ms)
    text = version.name if clause.field == "name" else version.tags.get(TEXTS[clause.field])
    if text is None:
        return False
    return clause.value in text if _compares_substring(clause) else COMPARE[clause.operator](text, clause.value)


def _read_number(version: Version, field: str) -> float | None:
    number = parse_number(version.tags.get(f"{names.MEASURED}{REGISTRY_NAMES[field]}", ""))
    return _read_dataset_size(version, field) if number is None and field in DATASET_SIZES else number


def _read_dataset_size(version: Version, field: str) -> float | None:
    """A data set's size from its manifest: versions of earlier releases have it on their run only."""
    if version.kind != "dataset":
        return None
    try:
        sizes = read_artifact(open_folder(version.uri)).manifest.get("dataset", {}).get(field)
    except UserError:
        return None
    return float(sum(sizes.values())) if isinstance(sizes, dict) else None


def _is_in_period(clause: Clause, created_ms: int) -> bool:
    """Whether a version was made in, before or after a day or a minute as a whole."""
    first, last = parse_period(clause.value)
    is_inside = first <= created_ms <= last
    return {
        "=": is_inside,
        "!=": not is_inside,
        "<": created_ms < first,
        "<=": created_ms <= last,
        ">": created_ms > last,
        ">=": created_ms >= first,
    }[clause.operator]


def _matches_setting(clause: Clause, found: Any) -> bool:
    """Compare a setting: as numbers if both are, else as texts or lists."""
    number, wanted = parse_number(_format_setting(found)), parse_number(clause.value)
    if clause.operator == "~":
        return clause.value in _format_setting(found)
    if number is not None and wanted is not None and not isinstance(found, bool):
        return COMPARE[clause.operator](number, wanted)
    if clause.operator not in ("=", "!="):
        return False
    return (_format_setting(found) == _normalize(clause.value, found)) == (clause.operator == "=")


def _format_setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _normalize(text: str, found: Any) -> str:
    """A value as it was typed, in the form of the setting that it is compared with: true for True, [1, 2] for [1,2]."""
    if isinstance(found, str):
        return text
    try:
        return json.dumps(json.loads(text.lower() if found is None or isinstance(found, bool) else text))
    except ValueError:
        return text
