"""YAML preset + dotted overrides -> one frozen stage configuration; every mistake becomes one message.

Precedence: schema default < preset (< what it `extends`, below it) < `key=value`. Nothing else.
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from presto_core.config.overrides import ConfigError as ConfigError
from presto_core.config.overrides import parse_override
from presto_core.config.schema import foreign_sections, stage_configs
from presto_core.config.stage import StageConfig

Stage = TypeVar("Stage", bound=StageConfig)
Overrides = Sequence[str | tuple[str, Any]] | Sequence[str] | Mapping[str, Any]
LOCATION_SECTIONS = {"storage", "tracking", "cluster", "inputs", "name"}


def load_config(
    stage: type[Stage],
    preset: str | Path | None = None,
    overrides: Overrides = (),
    *,
    preset_folder: Path | None = None,
) -> Stage:
    """Resolve a stage's configuration.

    Args:
        preset: a YAML file, or the name of one in `preset_folder`; it may hold sections of other stages.
        overrides: `dotted.key=value` strings (`overrides.parse_value` says what a value means) and pairs of a dotted
            key and a value, or a mapping of dotted keys.

    Raises:
        ConfigError: unknown preset or key (with a suggestion), or a value out of range.
    """
    raw = stage().model_dump(mode="json")
    if preset is not None:
        _merge(raw, _select_sections(stage, read_preset(preset, preset_folder)))
    for key, value in _parse_overrides(stage, overrides):
        _check_key_of_stage(stage, key)
        _merge(raw, _nest(key, value))
    try:
        return stage.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("; ".join(_format_error(stage, raw, e) for e in error.errors())) from None


def read_preset(preset: str | Path, preset_folder: Path | None = None) -> dict[str, Any]:
    """The YAML of a preset, merged over what it extends."""
    path = _find_preset(str(preset), preset_folder)
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"preset {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"preset {path} must hold sections (key: value), not {type(content).__name__}")
    parent = content.pop("extends", None)
    if parent is None:
        return content
    base = read_preset(parent, preset_folder)
    _merge(base, content)
    return base


def list_presets(folder: Path) -> list[str]:
    """Names that `read_preset` finds in a folder, e.g. demo, ablations/discrete_inputs."""
    return sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))


def to_yaml(config: StageConfig) -> str:
    """The resolved configuration, as a preset that reproduces it."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def settings_to_yaml(config: StageConfig) -> str:
    """What an artifact remembers of its settings: not where it was made, which may hold passwords, nor from what."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude=LOCATION_SECTIONS), sort_keys=False)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys: the names used by overrides, sweeps and tracked params."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _find_preset(preset: str, folder: Path | None) -> Path:
    candidates = [Path(preset)] + ([folder / f"{preset}.yaml", folder / preset] if folder else [])
    for path in candidates:
        if path.is_file():
            return path
    known = list_presets(folder) if folder else []
    matches = get_close_matches(preset, known, 1)
    hint = f"did you mean {matches[0]!r}?" if matches else f"known presets: {', '.join(known) or 'none'}"
    raise ConfigError(f"unknown preset {preset!r}: neither a file nor a known name; {hint}")


def _select_sections(stage: type[StageConfig], preset: dict[str, Any]) -> dict[str, Any]:
    """The preset's part for this stage; sections of other stages are left out, unknown ones kept to be refused."""
    foreign = foreign_sections(stage)
    return {key: value for key, value in preset.items() if key not in foreign}


def _check_key_of_stage(stage: type[StageConfig], key: str) -> None:
    top = key.split(".")[0]
    owners = [name for name, other in stage_configs().items() if top in other.model_fields]
    if owners and top not in stage.model_fields:
        raise ConfigError(f"config key {key!r} is not read by this stage; it belongs to {', '.join(owners)}")


def _parse_overrides(stage: type[StageConfig], overrides: Overrides) -> list[tuple[str, Any]]:
    if isinstance(overrides, Mapping):
        return list(overrides.items())
    return [parse_override(stage, item) if isinstance(item, str) else item for item in overrides]


def _nest(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return typing.cast(dict[str, Any], value)


def _merge(into: dict[str, Any], update: Mapping[str, Any]) -> None:
    """Deep-merge in place. A changed `kind` starts its section afresh, since another kind has other fields."""
    if "kind" in update and into.get("kind") != update["kind"]:
        into.clear()
    for key, value in update.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _format_error(stage: type[StageConfig], raw: dict[str, Any], error: Any) -> str:
    """One message for one pydantic error, with a suggestion for a misspelled key."""
    models, path = _walk(stage, error["loc"])
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        fields = [name for model in models for name in model.model_fields]
        matches = get_close_matches(path[-1], fields, 1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*path[:-1], matches[0]])!r}?" if matches else f"known: {', '.join(fields)}"
        return f"unknown config key {key!r}; {hint}"
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        return f"{key}: {message}" if key else message
    if error["type"].startswith("union_tag"):
        return f"{key}: kind must be one of {error['ctx'].get('expected_tags', 'the known kinds')}"
    if error["type"] == "tuple_type":
        return f"{key}={error['input']!r} must be a list; write {key}={_format_list(error['input'])}"
    if error["type"] == "string_type":
        return f"{key}={error['input']!r} must be a text; write it in quotes"
    return f"{key}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _format_list(item: Any) -> str:
    """A list of one item, quoted where YAML would not read it back."""
    listed = f"[{item}]"
    try:
        return listed if yaml.safe_load(listed) == [item] else json.dumps([item], ensure_ascii=False)
    except yaml.YAMLError:
        return json.dumps([item], ensure_ascii=False, default=str)


def _walk(model: type[BaseModel], loc: tuple[Any, ...]) -> tuple[list[type[BaseModel]], list[str]]:
    """Follow an error's location; drop the union tags pydantic adds; return the models at the end and the keys."""
    models: list[type[BaseModel]] = [model]
    path: list[str] = []
    for part in loc:
        tagged = [m for m in models if str(part) == _kind_of(m)]
        if tagged:
            models = tagged
            continue
        path.append(str(part))
        if isinstance(part, str) and any(part in m.model_fields for m in models):
            models = [n for m in models if part in m.model_fields for n in _collect_models(m.model_fields[part])]
    return models, path


def _kind_of(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    return str(field.default) if field else None


def _collect_models(field: Any) -> list[type[BaseModel]]:
    models, queue = [], [field.annotation]
    while queue:
        item = queue.pop()
        if inspect.isclass(item) and issubclass(item, BaseModel):
            models.append(item)
        queue.extend(typing.get_args(item))
    return models
