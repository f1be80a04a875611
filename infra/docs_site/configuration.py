"""The page of all settings, from the configuration itself: what `presto explain` says of each, in one place."""

from __future__ import annotations

from infra.cli.setting_views import format_value, name_readers
from pipelines.stages.table import STAGES
from presto_core.config.describe import Setting, describe_settings

INTRODUCTION = """\
# Configuration

Every setting of every stage, generated from the configuration itself. On the command line: `presto explain KEY`,
`presto config STAGE PRESET`. An override is `key=value` with the dotted key; a preset is the same as YAML. Defaults are
those without a preset. `[]` stands for each item of a list.
"""


def describe_configuration() -> str:
    """Return the page as Markdown: a part per section, a definition per setting."""
    readers: list[tuple[Setting, list[str]]] = []
    for name, stage in STAGES.items():
        for setting in describe_settings(stage.config):
            known = next((stages for other, stages in readers if other == setting), None)
            if known is None:
                readers.append((setting, [name]))
            else:
                known.append(name)
    parts: dict[str, list[str]] = {}
    for setting, names in readers:
        parts.setdefault(setting.key.partition(".")[0], []).append(_format(setting, names))
    return "\n".join([INTRODUCTION, *(_format_part(name, entries) for name, entries in sorted(parts.items()))])


def escape_cell(text: str) -> str:
    """Text for a cell of a Markdown table, on one line."""
    return escape_line(text).replace("|", "\\|")


def escape_line(text: str) -> str:
    """Text on one line, without HTML."""
    return " ".join(text.split()).replace("<", "&lt;")


def _format(setting: Setting, stages: list[str]) -> str:
    """A definition: key, type and default above, meaning and readers below."""
    facts = [setting.type] if setting.is_section else [setting.type, f"default `{format_value(setting.default)}`"]
    facts += [setting.range] if setting.range else []
    facts += [f"of kind {' or '.join(setting.kinds)}"] if setting.kinds else []
    readers = "" if len(stages) == len(STAGES) else f" *Read by {name_readers(stages)}.*"
    return f"`{setting.key}` {escape_line('; '.join(facts))}\n:   {escape_line(setting.meaning)}{readers}\n"


def _format_part(name: str, entries: list[str]) -> str:
    return "\n".join([f"## {name}", "", *entries])
