"""Parses search filters such as `mmd < 0.1 and latency_ms < 250`, and translates them into MLflow's filter language."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches

from pipelines.registry.names import LICENCES, METRIC, REGISTERED_AS, RegistryError
from pipelines.tracking.tags import ARTIFACT_ID, CONTENT, KIND, METHOD, PARENTS, RUN_ID, STAGE
from presto_core.metrics.table import METRICS

# a metric can be named as in reports or by its tag, which is its name in MLflow's database
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
_SUBSTRING_FIELDS = (
    "parent",
    "licence",
    "hardware",
    "content",
    "embedding",
)
_CLAUSE = re.compile(r"""\s*([\w.]+)\s*(<=|>=|!=|==|=|<|>|~)\s*("[^"]*"|'[^']*'|[^\s"'<>=!~]+)\s*""")
_EXAMPLE = 'write, for example, "mmd < 0.1 and latency_ms < 250"'


@dataclass(frozen=True)
class Clause:
    """One comparison: `mmd < 0.1`."""

    field: str
    operator: str
    value: str

    @property
    def mlflow_filter(self) -> str:
        """The clause in the filter language of MlflowClient.search_runs."""
        if self.field in NUMBERS:
            return f"metrics.`{METRIC}{REGISTRY_NAMES[self.field]}` {self.operator} {float(self.value)!r}"
        if self.field == "created":
            return f"attributes.start_time {self.operator} {_to_milliseconds(self.value)}"
        negated = self.operator == "!="
        if self.field == "name":
            return f"tags.`{REGISTERED_AS}{self.value}` LIKE '%'"
        if self.field in _SUBSTRING_FIELDS or self.operator == "~":
            comparison = f"LIKE '%{self.value}%'"
        else:
            comparison = f"{'!=' if negated else '='} '{self.value}'"
        operand = f"tags.`{TEXTS[self.field]}`" if self.field in TEXTS else f"params.`{self.field}`"
        return f"{operand} {comparison}"


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
        clauses.append(_make_clause(match[1], "=" if match[2] == "==" else match[2], match[3].strip("\"'")))
        position = match.end()
    return clauses


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
    if field not in FIELDS and "." not in field:
        similar_fields = get_close_matches(field, FIELDS, 1, cutoff=0.5)
        hint = (
            f"did you mean {similar_fields[0]!r}?"
            if similar_fields
            else f"use one of {', '.join(FIELDS)}, or a setting such as steps.p_gen.kind"
        )
        raise RegistryError(f"the filter has an unknown field {field!r}; {hint}")
    if "'" in value or "`" in value or "%" in value or ("_" in value and operator == "~"):
        raise RegistryError(f"the filter's value {value!r} has quotes or wildcards; remove them")
    if field in NUMBERS:
        _require_number(field, operator, value)
    elif field == "created":
        if operator in ("~", "!="):
            raise RegistryError(f"the filter compares 'created' by {operator!r}; use < <= > >= or = and a date")
        _to_milliseconds(value)
    elif operator not in ("=", "!=", "~"):
        raise RegistryError(
            f"the filter compares {field!r}, which is text, by {operator!r}; use = or != or ~ (contains)"
        )
    elif operator == "!=" and (field in _SUBSTRING_FIELDS or field == "name"):
        raise RegistryError(f"the filter cannot exclude a {field}; use = to select one")
    return Clause(field, operator, value)


def _require_number(field: str, operator: str, value: str) -> None:
    try:
        float(value)
    except ValueError:
        raise RegistryError(f"the filter compares {field!r} with {value!r}; use a number") from None
    if operator == "~":
        raise RegistryError(f"the filter compares the number {field!r} by '~'; use < <= > >= = or !=")


def _to_milliseconds(value: str) -> int:
    try:
        return int(datetime.fromisoformat(value).astimezone().timestamp() * 1000)
    except ValueError:
        raise RegistryError(
            f"the filter compares 'created' with {value!r}; use a date such as 2026-01-31 or 2026-01-31T12:00"
        ) from None
