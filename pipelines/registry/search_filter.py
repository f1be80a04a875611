"""`fd < 3 and latency_ms < 250 and parent=…`: a search as a user writes it, translated for MLflow's data base."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches

from pipelines.registry.names import (
    LICENCES,
    METRIC,
    REGISTERED_AS,
    RegistryError,
)
from pipelines.tracking.tags import (
    ARTIFACT_ID,
    CONTENT,
    KIND,
    METHOD,
    PARENTS,
    RUN_ID,
    STAGE,
)

NUMBERS = ("fd", "fd_to_base", "mmd", "density", "coverage", "latency_ms", "nfe", "blocks", "speed_up", "rows", "hours")
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
_CONTAIN = ("parent", "licence", "hardware", "content", "embedding")  # tags that hold more than one, or longer ones
_CLAUSE = re.compile(r"""\s*([\w.]+)\s*(<=|>=|!=|==|=|<|>|~)\s*("[^"]*"|'[^']*'|[^\s"'<>=!~]+)\s*""")
_EXAMPLE = 'write for example "fd < 3 and latency_ms < 250"'


@dataclass(frozen=True)
class Clause:
    """One comparison: `fd < 3`."""

    field: str
    operator: str
    value: str

    @property
    def mlflow(self) -> str:
        """The same in the language of MlflowClient.search_runs."""
        if self.field in NUMBERS:
            return f"metrics.`{METRIC}{self.field}` {self.operator} {float(self.value)!r}"
        if self.field == "created":
            return f"attributes.start_time {self.operator} {_milliseconds(self.value)}"
        negated = self.operator == "!="
        if self.field == "name":
            return f"tags.`{REGISTERED_AS}{self.value}` LIKE '%'"
        if self.field in _CONTAIN or self.operator == "~":
            comparison = f"LIKE '%{self.value}%'"
        else:
            comparison = f"{'!=' if negated else '='} '{self.value}'"
        place = f"tags.`{TEXTS[self.field]}`" if self.field in TEXTS else f"params.`{self.field}`"
        return f"{place} {comparison}"


def parse(text: str) -> list[Clause]:
    """The clauses of a filter; none of an empty one.

    Raises:
        RegistryError: it is not understood; the message says where, and what may be meant.
    """
    clauses: list[Clause] = []
    position = 0
    while position < len(text.rstrip()):
        if clauses:
            position = _after_and(text, position)
        found = _CLAUSE.match(text, position)
        if not found:
            raise RegistryError(f"the filter is not understood at {text[position:].strip()[:40]!r}; {_EXAMPLE}")
        clauses.append(_clause(found[1], "=" if found[2] == "==" else found[2], found[3].strip("\"'")))
        position = found.end()
    return clauses


def _after_and(text: str, position: int) -> int:
    found = re.compile(r"\s*(\w+|.)\s*").match(text, position)
    word = found[1] if found else ""
    if not found or word.lower() != "and":
        mend = (
            "search twice, once for each side"
            if word.lower() in ("or", "not")
            else f"join comparisons by and; {_EXAMPLE}"
        )
        raise RegistryError(f"the filter has {word!r} where 'and' is expected: {mend}")
    return found.end()


def _clause(field: str, operator: str, value: str) -> Clause:
    if field not in FIELDS and "." not in field:
        near = get_close_matches(field, FIELDS, 1, cutoff=0.5)
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else f"known: {', '.join(FIELDS)}, or a setting such as steps.p_gen.kind"
        )
        raise RegistryError(f"the filter's {field!r} is not known; {hint}")
    if "'" in value or "`" in value or "%" in value or ("_" in value and operator == "~"):
        raise RegistryError(f"the filter's value {value!r} has quotes or wildcards; leave them out")
    if field in NUMBERS:
        _require_number(field, operator, value)
    elif field == "created":
        if operator in ("~", "!="):
            raise RegistryError("the filter compares created by < <= > >= or =, with a date such as 2026-01-31")
        _milliseconds(value)
    elif operator not in ("=", "!=", "~"):
        raise RegistryError(
            f"the filter compares {field!r}, which is text, by {operator!r}; use = or != or ~ (contains)"
        )
    elif operator == "!=" and (field in _CONTAIN or field == "name"):
        raise RegistryError(f"the filter cannot exclude a {field}; use = to ask for one")
    return Clause(field, operator, value)


def _require_number(field: str, operator: str, value: str) -> None:
    try:
        float(value)
    except ValueError:
        raise RegistryError(f"the filter compares {field!r} with {value!r}, which is no number") from None
    if operator == "~":
        raise RegistryError(f"the filter compares the number {field!r} by '~'; use < <= > >= = or !=")


def _milliseconds(value: str) -> int:
    try:
        return int(datetime.fromisoformat(value).astimezone().timestamp() * 1000)
    except ValueError:
        raise RegistryError(
            f"the filter's created {value!r} is no date; write 2026-01-31 or 2026-01-31T12:00"
        ) from None
