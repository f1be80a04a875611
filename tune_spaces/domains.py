"""Building blocks of search spaces, which map dotted configuration keys to domains; data only, to list and check them.

Values are sampled in order, so that a key can depend on an earlier choice: `mean` of a noise distribution exists only
if its kind is lognormal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any


@dataclass(frozen=True)
class Choice:
    """One of several values: numbers, names, or whole sections."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """A number from low to high, both included; uniform on a logarithmic scale if `log`."""

    low: float
    high: float
    log: bool = False
    integer: bool = False


@dataclass(frozen=True)
class Conditional:
    """A section with a `kind`: kind -> domains of its other keys."""

    options: Mapping[str, Mapping[str, Choice | Range]]


Space = Mapping[str, Choice | Range | Conditional]
_POWER = re.compile(r"(?<![\w.])(\d+)(e[+-]?\d+)")
Suggest = Callable[[str, Choice | Range], Any]
"""(name, domain) -> a value of the domain; a name always has the same domain."""


def sample(space: Space, suggest: Suggest) -> dict[str, Any]:
    """Sample one configuration of a space as overrides: dotted key -> value, in the order to apply them."""
    settings: dict[str, Any] = {}
    for key, domain in space.items():
        if isinstance(domain, Conditional):
            kind = suggest(f"{key}.kind", Choice(tuple(domain.options)))
            settings[f"{key}.kind"] = kind
            for name, inner in domain.options[kind].items():
                settings[f"{key}.{name}"] = suggest(f"{key}.{kind}.{name}", inner)
        else:
            settings[key] = suggest(key, domain)
    return settings


def combinations(space: Space) -> Iterator[dict[str, Any]]:
    """Yield every configuration of a space without ranges, in a fixed order."""
    keys = list(space)
    for parts in product(*(list(_expand_domain(key, space[key])) for key in keys)):
        yield {name: value for part in parts for name, value in part.items()}


def list_range_keys(space: Space) -> list[str]:
    """Return the keys with a range, which have no grid."""
    return [key for key, domain in space.items() if any(isinstance(part, Range) for part in _leaf_domains(domain))]


def _leaf_domains(domain: Choice | Range | Conditional) -> list[Choice | Range]:
    if isinstance(domain, Conditional):
        return [inner for option in domain.options.values() for inner in option.values()]
    return [domain]


def _expand_domain(key: str, domain: Choice | Range | Conditional) -> Iterator[dict[str, Any]]:
    if isinstance(domain, Choice):
        yield from ({key: value} for value in domain.values)
    elif isinstance(domain, Conditional):
        for kind, inner in domain.options.items():
            for part in combinations({f"{key}.{name}": d for name, d in inner.items()}):
                yield {f"{key}.kind": kind, **part}


def to_overrides(settings: Mapping[str, Any]) -> list[str]:
    """Format overrides as `key=value` command-line arguments."""
    return [f"{key}={_format_yaml(value)}" for key, value in settings.items()]


def _format_yaml(value: Any) -> str:
    """Format a value as JSON, which is YAML; 1e-05 becomes 1.0e-05, because YAML reads the former as a string."""
    return _POWER.sub(r"\1.0\2", json.dumps(value))
