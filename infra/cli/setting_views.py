"""How `presto explain` and `presto config` print settings: readable at 80 columns, never cut."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipelines.console import make_console
from pipelines.stages.table import STAGES
from presto_core.config.describe import REQUIRED, Setting
from presto_core.config.provenance import DEFAULT, ResolvedSetting

VALUE_WIDTH = 18  # of a default beside its meaning


def print_sections(sections: Mapping[str, tuple[Setting, Sequence[str]]]) -> None:
    """Print the top-level keys, with their meaning and the stages that read them."""
    table = _make_table("section", "meaning")
    for key, (setting, stages) in sections.items():
        table.add_row(key, Text.assemble(setting.meaning, (f" ({name_readers(stages)})", "dim")))
    make_console().print(table)


def print_setting(key: str, readers: Mapping[str, list[Setting]], values: Mapping[str, Any], preset: str) -> None:
    """Print one setting; where stages differ, once for each of them.

    Args:
        readers: stage -> how it describes the key: more than once if kinds of its section differ.
        values: preset -> its value.
        preset: the only one that was looked at, if one was named.
    """
    console = make_console()
    console.print(Text(key, "bold"))
    for settings, stages in _group_stages(readers):
        for setting in settings:
            for line in setting.meaning.splitlines():
                console.print(Padding(Text(line), (0, 0, 0, 2)))
            console.print(Padding(_make_facts(setting, stages), (0, 0, 0, 2)))
    if preset and not values:
        console.print(Padding(Text(f"preset {preset} leaves it at its default", "dim"), (0, 0, 0, 2)))
    if values and not all(setting.is_section for found in readers.values() for setting in found):
        table = _make_table("value", "in presets")
        for text, names in _group_presets(values).items():
            table.add_row(text, ", ".join(names))
        console.print(Padding(table, (1, 0, 0, 2)))


def print_inner(key: str, inner: Sequence[Setting], values: Mapping[str, Any]) -> None:
    """Print the settings directly in a section, and the sections in it by name.

    Args:
        values: preset -> its values in the section.
    """
    if not inner:
        return
    table = _make_table("setting", "default", *values, "meaning")
    for column in table.columns[1:-1]:
        column.max_width = VALUE_WIDTH
    for setting in inner:
        name = setting.key[len(key) + 1 :] if setting.key.startswith(f"{key}.") else setting.key[len(key) :]
        given = [format_value(v[name]) if isinstance(v, Mapping) and name in v else "" for v in values.values()]
        default = "…" if setting.is_section and setting.default is not None else format_value(setting.default)
        table.add_row(name, default, *given, _summarize(setting))
    console = make_console()
    console.print(Padding(table, (1, 0, 0, 0)))
    if any(setting.is_section for setting in inner):
        section = next(setting.key for setting in inner if setting.is_section)
        console.print(Text(f"… is a section of its own: presto explain {section}", "dim"))


def _summarize(setting: Setting) -> Text:
    """Meaning and range in a few lines; of a kind, only which ones there are."""
    is_kind = setting.key.endswith(".kind") and "\n" in setting.meaning
    meaning = f"One of {', '.join(setting.choices)}." if is_kind else setting.meaning
    notes = [setting.range, f"of kind {' or '.join(setting.kinds)}" if setting.kinds else ""]
    if setting.choices and not is_kind:
        notes.insert(0, f"one of {', '.join(setting.choices)}")
    note = "; ".join(filter(None, notes))
    return Text.assemble(meaning, (f" ({note})" if note else "", "dim"))


def _group_presets(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """Value as text -> the presets that set it."""
    groups: dict[str, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(format_value(value), []).append(name)
    return groups


def print_settings(stage: str, settings: Sequence[ResolvedSetting]) -> None:
    """Print a stage's settings with their values; those at their default are dim."""
    table = _make_table("setting", "value", "default", "from")
    for setting in settings:
        cells = (setting.key, format_value(setting.value), format_value(setting.default), setting.source)
        table.add_row(*cells, style="dim" if setting.source == DEFAULT else "")
    make_console().print(table)


def to_json(
    readers: Mapping[str, list[Setting]], inner: Sequence[Setting], values: Mapping[str, Any]
) -> dict[str, Any]:
    """The same as plain data."""
    return {
        "settings": [
            {"stages": stages, **_describe(setting)}
            for settings, stages in _group_stages(readers)
            for setting in settings
        ],
        "inner": [_describe(setting) for setting in inner],
        "presets": dict(values),
    }


def name_readers(stages: Sequence[str]) -> str:
    """The commands that read a setting of these stages."""
    if len(stages) == len(STAGES):
        return "every command that takes settings"
    return ", ".join(f"presto {' '.join(STAGES[name].command) or name}" for name in stages)


def format_value(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value is REQUIRED:
        return "required"
    if value is None:
        return "empty"
    if isinstance(value, str):
        return value or "''"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | list | dict) else str(value)


def to_plain(default: Any) -> Any:
    return "required" if default is REQUIRED else default


def _describe(setting: Setting) -> dict[str, Any]:
    return {
        "key": setting.key,
        "type": setting.type,
        "meaning": setting.meaning,
        "default": to_plain(setting.default),
        "range": setting.range,
        "choices": list(setting.choices),
        "kinds": list(setting.kinds),
    }


def _group_stages(readers: Mapping[str, list[Setting]]) -> list[tuple[list[Setting], list[str]]]:
    """Stages that describe a setting alike, together."""
    groups: list[tuple[list[Setting], list[str]]] = []
    for stage, settings in readers.items():
        alike = next((stages for known, stages in groups if known == settings), None)
        if alike is None:
            groups.append((settings, [stage]))
        else:
            alike.append(stage)
    return groups


def _make_facts(setting: Setting, stages: Sequence[str]) -> Table:
    facts = {"type": setting.type, "range": setting.range}
    if not setting.is_section or setting.default is None:
        facts["default"] = format_value(setting.default)
    facts["kinds"] = f"only where the kind is {' or '.join(setting.kinds)}" if setting.kinds else ""
    facts["read by"] = name_readers(stages)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in facts.items():
        if text:
            table.add_row(name, text)
    return table


def _make_table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for number, name in enumerate(columns):
        table.add_column(name, overflow="fold", no_wrap=number == 0 and name == "setting")  # keys stay whole
    return table
