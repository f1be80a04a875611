"""What `--help` of a stage prints below its options: the common settings, how to quote them, and examples."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from typer.core import TyperCommand

from pipelines.stages.table import Stage

QUOTING = (
    "[bold]Quoting[/bold]: the value of a text setting is used as it is. For the shell, quote the whole word if it "
    "contains spaces, #, $, * or brackets: {example}. Write a list as 'KEY=\\[a, b]', an empty value as KEY=."
)
EXAMPLES = {
    "generate": "'generate.key=C# minor'",
    "edit": "'edit.key=C# minor'",
    "ingest": "'ingest.source=/music/Best of #1'",
    "evaluate": "'evaluate.base=[{steps: 40}, {sampler: euler, steps: 8}]'",
}


def make_command_class(stage: Stage) -> type[TyperCommand]:
    """A command whose help lists the stage's settings; they are described only when help is printed."""

    class StageTyperCommand(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            self.epilog = describe_settings_of(stage)
            super().format_help(ctx, formatter)

    return StageTyperCommand


def describe_settings_of(stage: Stage) -> str:
    """The settings of a row of the table, or of a stage's own sections if the row names none."""
    from infra.cli.setting_views import format_value
    from presto_core.config.describe import describe_settings

    known = {setting.key: setting for setting in describe_settings(stage.config)}
    keys = stage.settings or tuple(key for key, setting in known.items() if not setting.is_section)
    lines = ["[bold]Common settings[/bold], as KEY=VALUE:"]
    for key in keys:
        setting = known[key]
        default = "" if setting.default in (None, "") else f" ({format_value(setting.default)})"
        meaning = setting.meaning if "\n" not in setting.meaning else f"{setting.type}; presto explain {key}"
        lines.append(f"[bold]{key}[/bold]{escape(default)}: {escape(meaning)}")
    lines.append(
        f"[bold]All settings[/bold] with their values: presto config {stage.name} \\[PRESET]. The meaning of one: "
        "presto explain KEY."
    )
    return "\n\n".join([*lines, QUOTING.format(example=escape(EXAMPLES.get(stage.name, "'storage.root=/my disk'")))])
