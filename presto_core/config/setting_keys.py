"""All dotted keys that stages have, with the types of their values: what a search can name."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from pydantic import BaseModel

from presto_core.config.stage import StageConfig


def list_setting_types(stages: Iterable[type[StageConfig]]) -> dict[str, set[Any]]:
    """Return dotted key -> the types that its value has in any of the stages; sections are no keys."""
    found: dict[str, set[Any]] = {}
    for stage in stages:
        for key, type_ in _walk(stage, ""):
            found.setdefault(key, set()).add(type_)
    return found


def _walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        for type_ in _split_union(field.annotation):
            if inspect.isclass(type_) and issubclass(type_, BaseModel):
                yield from _walk(type_, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", typing.get_origin(type_) or type_


def _split_union(annotation: Any) -> Iterator[Any]:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        yield from _split_union(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _split_union(member)
    else:
        yield annotation
