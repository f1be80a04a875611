"""`dotted.key=value` -> key and value: text settings take the value as it is written, all others are YAML.

A path, name or prompt may hold what YAML reads as syntax (`Best of #1 hits`, `A: B`, `[Live] 1999`) or as a number (an
artifact id of sixteen digits). So what a value means follows from the type of the setting, not from how it looks.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel

from presto_core.config.stage import StageConfig
from presto_core.errors import UserError

NULLS = ("", "null", "~")


class ConfigError(UserError):
    """A setting that cannot be used; the message names it, its value and the fix."""


def parse_override(stage: type[StageConfig], override: str) -> tuple[str, Any]:
    """Split `dotted.key=value` and parse the value as the type of the stage's setting asks for.

    Raises:
        ConfigError: it has another form, or a value that is YAML is not valid.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} must have the form dotted.key=value")
    return key, parse_value(stage, key, text)


def parse_value(stage: type[StageConfig], key: str, text: str) -> Any:
    """Parse the value of a setting.

    - a text: as it is, without the quotes if it is quoted as a whole; empty or null for None, where that is allowed;
    - a list of texts: `[a, b]`, or one text;
    - anything else, and settings that do not exist: YAML.

    Raises:
        ConfigError: the value of a setting that is no text is not valid YAML.
    """
    types_ = list(_find_types(stage, key))
    expected = [t for t in types_ if t is not types.NoneType]
    if expected and all(map(_is_text, expected)):
        return None if len(expected) < len(types_) and text in NULLS else _unquote(text)
    if expected and all(map(_is_list_of_text, expected)):
        listed = _load_texts(text) if "\n" in text or text[:1] + text[-1:] == "[]" else None
        return listed if _holds_texts(listed, list) else _unquote(text)
    if expected and all(map(_is_mapping_to_text, expected)) and _holds_texts(mapping := _load_texts(text), dict):
        return mapping
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"value of {key!r} is not valid YAML: {text!r}") from None


def _find_types(stage: type[StageConfig], key: str) -> Iterator[Any]:
    """Yield the types that a dotted key may have: several for a union, none for an unknown key."""
    found: list[Any] = [stage]
    for name in key.split("."):
        inner: list[Any] = []
        for type_ in found:
            if inspect.isclass(type_) and issubclass(type_, BaseModel) and name in type_.model_fields:
                inner += _split_union(type_.model_fields[name].annotation)
            elif typing.get_origin(type_) is dict:
                inner += _split_union(typing.get_args(type_)[1])
        found = inner
    yield from found


def _split_union(annotation: Any) -> Iterator[Any]:
    if typing.get_origin(annotation) is Annotated:
        yield from _split_union(typing.get_args(annotation)[0])
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _split_union(member)
    else:
        yield annotation


def _is_text(type_: Any) -> bool:
    is_choice = typing.get_origin(type_) is Literal
    return type_ is str or (is_choice and all(isinstance(value, str) for value in typing.get_args(type_)))


def _is_list_of_text(type_: Any) -> bool:
    return typing.get_origin(type_) in (tuple, list) and all(
        item is Ellipsis or _is_text(item) for item in typing.get_args(type_)
    )


def _is_mapping_to_text(type_: Any) -> bool:
    return typing.get_origin(type_) is dict and all(map(_is_text, typing.get_args(type_)))


def _load_texts(text: str) -> Any:
    """Load YAML whose scalars all stay text, or return None if it is none."""
    try:
        return yaml.load(text, Loader=yaml.BaseLoader)  # makes only texts, lists and mappings
    except (yaml.YAMLError, ValueError):
        return None


def _holds_texts(value: Any, kind: type[list[Any]] | type[dict[Any, Any]]) -> bool:
    if not isinstance(value, kind):
        return False
    return all(isinstance(item, str) for item in (value.values() if isinstance(value, dict) else value))


def _unquote(text: str) -> str:
    if len(text) >= 2 and text[0] in "'\"" and text[-1] == text[0] and isinstance(content := _load_texts(text), str):
        return content
    return text
