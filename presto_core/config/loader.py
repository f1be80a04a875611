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
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # that of libyaml is ten times as fast
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
        merge(raw, select_sections(stage, read_preset(preset, preset_folder)))
    for key, value in parse_overrides(stage, overrides):
        _check_key_of_stage(stage, key)
        merge(raw, nest(key, value))
    try:
        return stage.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("; ".join(_format_error(stage, raw, e) for e in _drop_consequences(error.errors()))) from None


def read_preset(preset: str | Path, preset_folder: Path | None = None) -> dict[str, Any]:
    """The YAML of a preset, merged over what it extends."""
    merged: dict[str, Any] = {}
    for _, content in read_preset_layers(preset, preset_folder):
        merge(merged, content)
    return merged


def read_preset_layers(preset: str | Path, preset_folder: Path | None = None) -> list[tuple[str, dict[str, Any]]]:
    """Name and YAML of a preset and of those it extends, the last of which comes first.

    Raises:
        ConfigError: one is unknown, cannot be read, or extends itself.
    """
    layers: list[tuple[str, dict[str, Any]]] = []
    name: object = preset
    while name is not None:
        if any(name == known for known, _ in layers):
            raise ConfigError(f"preset {preset} extends itself, by way of {name}; correct its extends")
        content = _read_yaml(str(name), preset_folder)
        parent = content.pop("extends", None)
        layers.insert(0, (str(name), content))
        name = parent
    return layers


def _read_yaml(preset: str, preset_folder: Path | None) -> dict[str, Any]:
    path = _find_preset(preset, preset_folder)
    try:
        content = yaml.load(path.read_text(), Loader=YAML_LOADER) or {}
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"preset {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"preset {path} must hold sections (key: value), not {type(content).__name__}")
    return content


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


def select_sections(stage: type[StageConfig], preset: dict[str, Any]) -> dict[str, Any]:
    """The preset's part for this stage; sections of other stages are left out, unknown ones kept to be refused."""
    foreign = foreign_sections(stage)
    return {key: value for key, value in preset.items() if key not in foreign}


def _check_key_of_stage(stage: type[StageConfig], key: str) -> None:
    top = key.split(".")[0]
    owners = [name for name, other in stage_configs().items() if top in other.model_fields]
    if owners and top not in stage.model_fields:
        raise ConfigError(f"config key {key!r} is not read by this stage; it belongs to {', '.join(owners)}")


def parse_overrides(stage: type[StageConfig], overrides: Overrides) -> list[tuple[str, Any]]:
    if isinstance(overrides, Mapping):
        return list(overrides.items())
    return [parse_override(stage, item) if isinstance(item, str) else item for item in overrides]


def nest(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return typing.cast(dict[str, Any], value)


def merge(into: dict[str, Any], update: Mapping[str, Any]) -> None:
    """Deep-merge in place. A changed `kind` starts its section afresh, since another kind has other fields."""
    if "kind" in update and into.get("kind") != update["kind"]:
        into.clear()
    for key, value in update.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _drop_consequences(errors: Sequence[Any]) -> list[Any]:
    """Return errors without that of a list which is too short only because an entry of it is wrong."""

    def has_wrong_entry(error: Any) -> bool:
        path = error["loc"]
        return any(other is not error and other["loc"][: len(path)] == path for other in errors)

    return [error for error in errors if error["type"] != "too_short" or not has_wrong_entry(error)]


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
        expected, tag = error["ctx"].get("expected_tags", "the known kinds"), error["ctx"].get("tag", "")
        return f"{key}: kind must be one of {expected}{_suggest(tag, expected)}"
    if error["type"] == "literal_error":
        expected = error["ctx"]["expected"]
        return f"{key}={error['input']!r}: input should be {expected}{_suggest(error['input'], expected)}"
    if error["type"] == "tuple_type":
        return f"{key}={error['input']!r} must be a list; write {key}={_format_list(error['input'])}"
    if error["type"] == "string_type":
        return f"{key}={error['input']!r} must be a text; write it in quotes"
    return f"{key}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _suggest(value: object, expected: str) -> str:
    """The one of the expected values, each in single quotes, that a misspelled one is like."""
    matches = get_close_matches(str(value).lower(), expected.split("'")[1::2], 1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


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
