"""Where each value of a resolved configuration comes from: a default, a preset, or the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from presto_core.config.describe import REQUIRED, Setting, describe_settings
from presto_core.config.loader import load_config, merge, nest, parse_overrides, read_preset_layers, select_sections
from presto_core.config.stage import StageConfig

DEFAULT, COMMAND_LINE, DERIVED = "default", "command line", "derived"


@dataclass(frozen=True)
class ResolvedSetting:
    """One setting as a stage reads it.

    Attributes:
        key: dotted.
        value, default: as plain data; the default is that of the kind in use, or REQUIRED.
        source: `default`, `command line`, the name of a preset, or `derived` if it follows from other settings.
    """

    key: str
    value: Any
    default: Any
    source: str


@dataclass(frozen=True)
class _Sourced:
    """A value in a tree of settings, and where it is from; equal to another of the same value."""

    value: Any
    source: str = field(compare=False)


def load_and_trace(
    stage: type[StageConfig], preset: str | None, overrides: Sequence[str], *, preset_folder: Path
) -> tuple[StageConfig, list[ResolvedSetting]]:
    """Resolve a stage with `load_config`, and find for each of its settings where the value is from.

    Raises:
        ConfigError: as `load_config`.
    """
    config = load_config(stage, preset, overrides, preset_folder=preset_folder)
    layers = [(name, select_sections(stage, content)) for name, content in _list_layers(preset, preset_folder)]
    layers += [(COMMAND_LINE, nest(key, value)) for key, value in parse_overrides(stage, overrides)]
    sources: dict[str, Any] = {}
    for name, content in layers:
        merge(sources, _mark(content, name))
    resolved, kinds = config.model_dump(mode="json"), dict[str, str]()
    found = []
    for setting in describe_settings(stage):
        section, _, name = setting.key.rpartition(".")
        value = look_up(resolved, setting.key)
        if name == "kind" and isinstance(value, str):
            kinds[section] = value
        if _is_shown(setting, value, kinds):
            found.append(ResolvedSetting(setting.key, value, setting.default, _find_source(sources, setting, value)))
    return config, found


def _list_layers(preset: str | None, folder: Path) -> list[tuple[str, dict[str, Any]]]:
    return read_preset_layers(preset, folder) if preset is not None else []


def _mark(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    return {
        key: _mark(value, source) if isinstance(value, Mapping) else _Sourced(value, source)
        for key, value in content.items()
    }


ABSENT = object()


def look_up(tree: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key, or `ABSENT`."""
    value: Any = tree
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return ABSENT
        value = value[name]
    return value


def _is_shown(setting: Setting, value: Any, kinds: Mapping[str, str]) -> bool:
    """Whether it is a setting of the kinds in use; a section is one only where it is left empty."""
    if value is ABSENT or (setting.is_section and value is not None):
        return False
    above = [kind for section, kind in kinds.items() if setting.key.startswith(f"{section}.")]
    return not setting.kinds or any(kind in setting.kinds for kind in above)


def _find_source(sources: Mapping[str, Any], setting: Setting, value: Any) -> str:
    """The last layer that sets a key, or the section around it as a whole."""
    node: Any = sources
    for name in setting.key.split("."):
        if isinstance(node, Mapping) and name in node:
            node = node[name]
        else:
            node = node if isinstance(node, _Sourced) else None
            break
    if isinstance(node, _Sourced):
        return node.source
    if isinstance(node, Mapping) and node:  # a mapping of the user's own keys, each from somewhere
        return ", ".join(dict.fromkeys(_list_sources(node)))
    is_default = setting.default is REQUIRED or value == setting.default
    return DEFAULT if is_default else DERIVED


def _list_sources(node: Mapping[str, Any]) -> list[str]:
    return [s for v in node.values() for s in ([v.source] if isinstance(v, _Sourced) else _list_sources(v))]
