"""What each setting of a stage is: meaning, type, default and range, read from the fields of the configuration.

Nothing is listed here: a new field with its docstring is described as soon as it exists.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from presto_core.config.section import Section
from presto_core.config.stage import StageConfig

REQUIRED = object()  # the default of a setting that has none
TYPE_NAMES = {int: "integer", float: "number", str: "text", bool: "true or false"}
BOUNDS = {"ge": "at least {:g}", "gt": "above {:g}", "le": "at most {:g}", "lt": "below {:g}"}


@dataclass(frozen=True)
class Setting:
    """One setting, or a section of them.

    Attributes:
        key: dotted; `[]` stands for each item of a list.
        type: in words.
        meaning: what it decides.
        default: as plain data; `REQUIRED` if there is none, None if it is empty.
        range: values that are allowed, in words; empty if any of its type is.
        choices: the values of an enumeration.
        kinds: the kinds of its section that have it; empty if all have.
        is_section: whether it holds settings.
    """

    key: str
    type: str
    meaning: str
    default: Any
    range: str = ""
    choices: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    is_section: bool = False


def describe_settings(stage: type[StageConfig]) -> list[Setting]:
    """Every setting and section of a stage, in the order of its fields; one that differs by kind comes once a kind."""
    return _merge_kinds(_walk(stage, stage(), ""))


def _walk(model: type[BaseModel], instance: BaseModel | None, prefix: str) -> Iterator[Setting]:
    """Describe the fields of a model, with the defaults that `instance` has, or those of the model."""
    for name, field in model.model_fields.items():
        default = getattr(instance, name) if instance else _get_default(field)
        yield from _describe(field, f"{prefix}{name}", default)


def _describe(field: FieldInfo, key: str, default: Any) -> Iterator[Setting]:
    members = [t for t in _split_union(field.annotation) if t is not types.NoneType]
    sections = [t for t in members if _is_section(t)]
    meaning = _clean(field.description) or (_clean(sections[0].__doc__) if len(sections) == 1 else "")
    if sections == members:
        yield from _describe_section(key, meaning, sections, default)
        return
    yield Setting(
        key, _name_type(field.annotation), meaning, _to_plain(default), _name_range(field), _list_choices(members)
    )
    for item in [t for member in members for t in typing.get_args(member)]:
        for variant in filter(_is_section, _split_union(item)):
            # kinds of a list of distributions are those of the section that holds it, which are described already
            if "kind" not in variant.model_fields or len(list(_split_union(item))) == 1:
                yield from _walk(variant, None, f"{key}[].")


def _describe_section(key: str, meaning: str, variants: list[type[Section]], default: Any) -> Iterator[Setting]:
    """A section, and what is in it: in all its kinds if it has several."""
    plain = _to_plain(default)
    if len(variants) == 1:
        yield Setting(key, "section", meaning, plain if plain is None else {}, is_section=True)
        yield from _walk(variants[0], default, f"{key}.")
        return
    kinds = tuple(str(variant.model_fields["kind"].default) for variant in variants)
    yield Setting(key, f"section of one kind of {len(kinds)}", meaning, plain, is_section=True)
    about = "\n".join(f"`{kind}`: {_clean(variant.__doc__)}" for kind, variant in zip(kinds, variants))
    first = plain["kind"] if plain else None
    yield Setting(f"{key}.kind", "one of " + ", ".join(kinds), about, first, choices=kinds)
    for kind, variant in zip(kinds, variants):
        found = _walk(variant, default if isinstance(default, variant) else None, f"{key}.")
        yield from (replace(one, kinds=one.kinds or (kind,)) for one in found if one.key != f"{key}.kind")


def _merge_kinds(found: Iterator[Setting]) -> list[Setting]:
    """Make one of settings that are the same in several kinds."""
    merged: dict[tuple[Any, ...], Setting] = {}
    for one in found:
        identity = (one.key, one.type, one.meaning, repr(one.default), one.range)
        known = merged.get(identity)
        merged[identity] = replace(known, kinds=known.kinds + one.kinds) if known else one
    return list(merged.values())


def _name_type(annotation: Any) -> str:
    names = [_name_member(member) for member in _split_union(annotation)]
    empty = ["empty"] if "" in names else []
    return " or ".join([name for name in names if name] + empty)


def _name_member(member: Any) -> str:
    """The name of a type, or nothing for None."""
    if member is types.NoneType:
        return ""
    origin, args = typing.get_origin(member), typing.get_args(member)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (tuple, list):
        item = "section" if any(_is_section(t) for t in _split_union(args[0])) else _name_type(args[0])
        return f"list, each {item}" if args[-1] is Ellipsis else f"list of {len(args)}, each {item}"
    if origin is dict:
        return f"mapping of names to {_name_type(args[1])}"
    if _is_section(member):
        return "section"
    return TYPE_NAMES.get(member, "any value")


def _name_range(field: FieldInfo) -> str:
    """What bounds a number, the items of a list, or their count."""
    own = _name_bounds(field.metadata)
    inner = [_name_inner_bounds(member) for member in _split_annotated(field.annotation)]
    return ", ".join(text for text in dict.fromkeys([own, *inner]) if text)


def _name_inner_bounds(annotation: Any) -> str:
    if typing.get_origin(annotation) is Annotated:
        return _name_bounds(annotation.__metadata__)
    if typing.get_origin(annotation) in (tuple, list):
        item = _name_inner_bounds(typing.get_args(annotation)[0])
        return f"each {item}" if item else ""
    return ""


def _name_bounds(metadata: Any) -> str:
    bounds: dict[str, Any] = {}
    for one in metadata:
        for name in (*BOUNDS, "min_length"):
            if getattr(one, name, None) is not None:
                bounds[name] = getattr(one, name)
        for inner in getattr(one, "metadata", ()):  # Field(gt=0) inside of Annotated
            bounds |= {name: getattr(inner, name) for name in BOUNDS if getattr(inner, name, None) is not None}
    if {"ge", "le"} == set(bounds):
        return f"from {_format_number(bounds['ge'])} to {_format_number(bounds['le'])}"
    texts = [BOUNDS[name].replace("{:g}", _format_number(bounds[name])) for name in BOUNDS if name in bounds]
    if "min_length" in bounds:
        texts.append(f"at least {bounds['min_length']} of them")
    return " and ".join(texts)


def _format_number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _list_choices(members: list[Any]) -> tuple[str, ...]:
    return tuple(str(v) for t in members if typing.get_origin(t) is Literal for v in typing.get_args(t))


def _split_annotated(annotation: Any) -> Iterator[Any]:
    """The members of a union, with their metadata."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _split_annotated(member)
    else:
        yield annotation


def _split_union(annotation: Any) -> Iterator[Any]:
    """The members of a union, without metadata."""
    for member in _split_annotated(annotation):
        if typing.get_origin(member) is Annotated:
            yield from _split_union(typing.get_args(member)[0])
        else:
            yield member


def _is_section(type_: Any) -> bool:
    return inspect.isclass(type_) and issubclass(type_, Section)


def _get_default(field: FieldInfo) -> Any:
    return REQUIRED if field.is_required() else field.get_default(call_default_factory=True)


def _to_plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, tuple | list):
        return [_to_plain(item) for item in value]
    return value


def _clean(text: str | None) -> str:
    """A docstring as one paragraph: its first."""
    return " ".join(inspect.cleandoc(text or "").partition("\n\n")[0].split())
