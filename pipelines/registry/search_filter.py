"""Parses search filters such as `mmd < 0.1 and latency_ms < 250`; a mistake is refused with what to write instead."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from pipelines.registry.names import LICENCES, RegistryError
from pipelines.tracking.tags import ARTIFACT_ID, CONTENT, KIND, METHOD, PARENTS, RUN_ID, STAGE
from presto_core.metrics.table import METRICS

# a metric can be named as in reports or by its tag
REGISTRY_NAMES = {metric.name: metric.registry_name for metric in METRICS.values() if metric.registry_name}
REGISTRY_NAMES |= {tag: tag for tag in REGISTRY_NAMES.values()} | {"rows": "rows", "hours": "hours"}
REGISTRY_NAMES |= {
    f"validation_{m.name}": f"validation_{m.name}" for m in METRICS.values() if m.validated and m.compute
}
NUMBERS = tuple(REGISTRY_NAMES)
TEXTS = {
    "method": METHOD,
    "kind": KIND,
    "stage": STAGE,
    "id": ARTIFACT_ID,
    "run_id": RUN_ID,
    "content": CONTENT,
    "parent": PARENTS,
    "licence": LICENCES,
    "embedding": "presto.measured.embedding",
    "hardware": "presto.measured.hardware",
}
OTHERS = ("name", "created", "seed")
FIELDS = (*NUMBERS, *TEXTS, *OTHERS)
# tags that hold several values, or longer texts
SUBSTRING_FIELDS = ("parent", "licence", "hardware", "content", "embedding")
_CLAUSE = re.compile(r"""\s*([\w.]+)\s*(<=|>=|!=|==|=|<|>|~)\s*("[^"]*"|'[^']*'|[^\s"'<>=!~]+)\s*""")
_EXAMPLE = 'write, for example, "mmd < 0.1 and latency_ms < 250"'
_UNREGISTERED_STAGES = ("corpus", "dataset", "edit", "generate", "registry", "sweep")  # that make no version
_UNRECORDED = ("storage", "tracking", "submit")


@dataclass(frozen=True)
class Clause:
    """One comparison: `mmd < 0.1`."""

    field: str
    operator: str
    value: str

    @property
    def is_setting(self) -> bool:
        return self.field == "seed" or self.field not in FIELDS


def parse_filter(text: str) -> list[Clause]:
    """Parse a filter into clauses; an empty filter has none.

    Raises:
        RegistryError: the filter is invalid; the message has the position and a suggestion.
    """
    clauses: list[Clause] = []
    position = 0
    while position < len(text.rstrip()):
        if clauses:
            position = _skip_and(text, position)
        match = _CLAUSE.match(text, position)
        if not match:
            raise RegistryError(f"the filter has an invalid comparison at {text[position:].strip()[:40]!r}; {_EXAMPLE}")
        clauses.append(_make_clause(match[1], "=" if match[2] == "==" else match[2], _unquote(match[3])))
        position = match.end()
    return clauses


def _unquote(value: str) -> str:
    return value[1:-1] if value[0] in "\"'" else value


def _skip_and(text: str, position: int) -> int:
    match = re.compile(r"\s*(\w+|.)\s*").match(text, position)
    token = match[1] if match else ""
    if not match or token.lower() != "and":
        hint = (
            "search twice, once per side"
            if token.lower() in ("or", "not")
            else f"join comparisons with and; {_EXAMPLE}"
        )
        raise RegistryError(f"the filter has {token!r} instead of 'and'; {hint}")
    return match.end()


def _make_clause(field: str, operator: str, value: str) -> Clause:
    if "`" in value and field != "name":
        raise RegistryError(f"the filter's value {value!r} has backticks; quote it with ' or \"")
    clause = Clause(field, operator, value)
    if field in NUMBERS:
        _require_number(field, operator, value)
    elif field == "created":
        _require_time(operator, value)
    elif clause.is_setting:
        _check_setting(field, operator, value)
    elif operator not in ("=", "!=", "~"):
        raise RegistryError(
            f"the filter compares {field!r}, which is text, by {operator!r}; use = or != or ~ (contains)"
        )
    elif operator == "!=" and field in SUBSTRING_FIELDS:
        raise RegistryError(f"the filter cannot exclude a {field}; use = to select one")
    return clause


def _require_number(field: str, operator: str, value: str) -> None:
    if parse_number(value) is None:
        raise RegistryError(f"the filter compares {field!r} with {value!r}; use a number")
    if operator == "~":
        raise RegistryError(f"the filter compares the number {field!r} by '~'; use < <= > >= = or !=")


def _check_setting(field: str, operator: str, value: str) -> None:
    types = list_settings().get(field)
    if types is None:
        raise RegistryError(_explain_unknown(field))
    if operator in ("<", "<=", ">", ">="):
        if not types & {int, float}:
            raise RegistryError(f"the filter compares {field!r}, which is no number, by {operator!r}; use = or != or ~")
        if parse_number(value) is None:
            raise RegistryError(f"the filter compares {field!r} with {value!r}; use a number")


def _explain_unknown(field: str) -> str:
    settings = list_settings()
    if inner := [key for key in settings if key.startswith(f"{field}.")]:
        return f"the filter compares {field!r}, which is a section; use one of its settings: {', '.join(inner)}"
    known = [*FIELDS, *settings] if "." in field else FIELDS
    if similar := get_close_matches(field, known, 1, cutoff=0.5):
        hint = f"did you mean {similar[0]!r}?"
    elif same_ending := [key for key in settings if key.endswith(f".{field.rpartition('.')[2]}")]:
        hint = f"did you mean one of {', '.join(same_ending[:5])}?"
    else:
        hint = f"use one of {', '.join(FIELDS)}, or a setting such as steps.p_gen.kind"
    return f"the filter has an unknown field {field!r}; {hint}"


@lru_cache(maxsize=1)
def list_settings() -> dict[str, set[Any]]:
    """Return the settings that versions record, by dotted key, with their types."""
    from presto_core.config.schema import stage_configs
    from presto_core.config.setting_keys import list_setting_types

    types = list_setting_types(stage for name, stage in stage_configs().items() if name not in _UNREGISTERED_STAGES)
    return {key: found for key, found in types.items() if key.partition(".")[0] not in (*_UNRECORDED, "name")}


def parse_number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _require_time(operator: str, value: str) -> None:
    if operator == "~":
        raise RegistryError("the filter compares 'created' by '~'; use < <= > >= = or != and a date")
    parse_period(value)


def parse_period(value: str) -> tuple[int, int]:
    """Return first and last millisecond of the day, minute or second that a text names, in UTC if it has no offset."""
    try:
        start = datetime.fromisoformat(value)
    except ValueError:
        raise RegistryError(
            f"the filter compares 'created' with {value!r}; use a date such as 2026-01-31 or a time such as "
            "2026-01-31T12:00, in UTC if it has no offset such as +02:00"
        ) from None
    start = start if start.tzinfo else start.replace(tzinfo=UTC)
    _, has_clock, clock = value.replace(" ", "T").partition("T")
    has_seconds = re.split("[+Z-]", clock)[0].count(":") > 1
    length = timedelta(days=1) if not has_clock else timedelta(seconds=1) if has_seconds else timedelta(minutes=1)
    first = int(start.timestamp() * 1000)
    return first, first + int(length.total_seconds() * 1000) - 1
