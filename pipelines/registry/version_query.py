"""Finds model versions in MLflow or its database, whatever names and tags hold; only here are MLflow's filters written.

Strings of MLflow's filter language have no escapes: a quote or a backslash ends or breaks them. A value that has such a
character is matched by LIKE with a wildcard in its place, which finds more than is meant, and is then compared exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pipelines.tracking.sqlite_registry import StoredRegistry

PAGE_SIZE, LARGEST_PAGE = 200, 1000
_NOT_QUOTABLE = re.compile(r"[\x00-\x1f\x7f'\"`\\;]")
_PATTERN = re.compile(r"[\x00-\x1f\x7f'\"`\\;%_\[\]]")  # those, and what LIKE reads as a pattern
NEWEST_FIRST = ("creation_timestamp DESC", "name ASC", "version_number DESC")


def find_versions(
    client: Any,
    *,
    name: str = "",
    tags: Mapping[str, str] = MappingProxyType({}),
    contained: Mapping[str, Sequence[str]] = MappingProxyType({}),
    present: Sequence[str] = (),
    order_by: Sequence[str] = NEWEST_FIRST,
    page_size: int = PAGE_SIZE,
) -> Iterator[Any]:
    """Yield MLflow's model versions that satisfy all conditions.

    Args:
        name: of the model; empty for any.
        tags: tag -> its value.
        contained: tag -> texts that its value contains.
        present: tags that a version has.
    """
    candidates = (
        client.list_sorted(name, list(order_by))
        if isinstance(client, StoredRegistry)
        else _search(client, name, tags, contained, present, order_by, page_size)
    )
    for version in candidates:
        if name and version.name != name:
            continue
        if any(version.tags.get(key) != value for key, value in tags.items()):
            continue
        if any(key not in version.tags for key in (*present, *contained)):
            continue
        if all(text in version.tags[key] for key, texts in contained.items() for text in texts):
            yield version


def _search(
    client: Any,
    name: str,
    tags: Mapping[str, str],
    contained: Mapping[str, Sequence[str]],
    present: Sequence[str],
    order_by: Sequence[str],
    page_size: int,
) -> Iterator[Any]:
    """Yield what MLflow finds, page by page: all versions that satisfy the conditions, and perhaps others."""
    conditions = [_equal("name", name)] if name else []
    conditions += [_equal(_tag(key), value) for key, value in tags.items()]
    conditions += [_contains(_tag(key), text) for key, texts in contained.items() for text in texts]
    conditions += [_contains(_tag(key), "") for key in present if key not in tags and key not in contained]
    token = None
    while True:
        page = client.search_model_versions(
            " and ".join(conditions) or None, max_results=page_size, order_by=list(order_by), page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return
        page_size = max(page_size, min(4 * page_size, LARGEST_PAGE))  # few may be enough, and many soon are too many


def find_by_hash(client: Any, name: str, key: str, prefix: str) -> Iterator[Any]:
    """Yield versions of a model whose tag begins with some digits of a hash."""
    found = find_versions(client, name=name, contained={key: [prefix]})
    return (version for version in found if version.tags[key].startswith(prefix))


def list_models(client: Any) -> list[Any]:
    """Return all of MLflow's registered models, however many pages they are."""
    if isinstance(client, StoredRegistry):
        return list(client.models.values())
    models: list[Any] = []
    token = None
    while True:
        page = client.search_registered_models(max_results=1000, page_token=token)
        models += page
        token = page.token
        if not token:
            return models


def _tag(key: str) -> str:
    return f"tags.`{key}`"


def _equal(operand: str, value: str) -> str:
    if _NOT_QUOTABLE.search(value):
        return f"{operand} LIKE '{_PATTERN.sub('_', value)}'"
    return f"{operand} = '{value}'"


def _contains(operand: str, text: str) -> str:
    return f"{operand} LIKE '%{_PATTERN.sub('_', text)}%'"
