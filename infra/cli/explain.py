"""`presto explain KEY` and `presto config STAGE`: what a setting means, and what a stage's settings are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated

import typer

from infra.cli.options import AsJson, add_dry_run
from pipelines.console import print_text
from pipelines.presets.resolve import PRESETS, split_preset
from pipelines.stages.table import STAGES, Stage
from presto_core.config.loader import ConfigError, list_presets, read_preset, to_yaml

if TYPE_CHECKING:  # other commands start without them
    from presto_core.config.describe import Setting


@add_dry_run
def explain(
    key: Annotated[
        str,
        typer.Argument(metavar="[KEY]", help="A setting or a section: steps.p_gen.kind, steps.p_gen, layers."),
    ] = "",
    preset: Annotated[str, typer.Argument(metavar="[PRESET]", help="Show only this preset's value.")] = "",
    preset_option: Annotated[
        str, typer.Option("--preset", metavar="PRESET", help="The same, as an option.", show_default=False)
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Explain a setting: meaning, type, default, range, the commands that read it, its values in presets.

    Without a key, list all sections.
    """
    from infra.cli import setting_views
    from presto_core.config.describe import describe_settings
    from presto_core.config.provenance import ABSENT, look_up

    chosen = preset_option or preset
    contents = {name: read_preset(name, PRESETS) for name in ([chosen] if chosen else list_presets(PRESETS))}
    described = {name: describe_settings(stage.config) for name, stage in STAGES.items()}
    if not key:
        setting_views.print_sections(_list_sections(described))
        return
    key = key.partition("=")[0]
    readers = {name: found for name, settings in described.items() if (found := [s for s in settings if s.key == key])}
    if not readers:
        raise ConfigError(_refuse_key(key, described))
    inner = _list_inner(key, described)
    values = {name: value for name, content in contents.items() if (value := look_up(content, key)) is not ABSENT}
    if as_json:
        print_text(json.dumps(setting_views.to_json(readers, inner, values), indent=2, ensure_ascii=False))
        return
    setting_views.print_setting(key, readers, values, chosen)
    setting_views.print_inner(key, inner, values if chosen else {})


@add_dry_run
def show_config(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help=f"One of {', '.join(STAGES)}.")],
    args: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PRESET] [KEY=VALUE]...",
            help="The same arguments as for the stage's own command.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="Print a preset that contains all of them.")] = False,
) -> None:
    """Print all settings of a stage: value, default, and where the value is from.

    For example [bold]presto config distill-steps demo steps.p_gen.rho=5[/bold]. The meaning of one:
    [bold]presto explain steps.p_gen.rho[/bold].
    """
    from infra.cli import setting_views
    from presto_core.config.provenance import load_and_trace

    row = find_stage(stage)
    preset, overrides = split_preset(args or [])
    config, settings = load_and_trace(row.config, preset, overrides, preset_folder=PRESETS)
    if as_yaml:
        print_text(to_yaml(config), end="")
    elif as_json:
        rows = {
            s.key: {"value": s.value, "default": setting_views.to_plain(s.default), "source": s.source}
            for s in settings
        }
        print_text(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        setting_views.print_settings(row.name, settings)


def find_stage(name: str) -> Stage:
    """The stage of a name or of the words of its command, such as corpus-build; raises ConfigError."""
    by_name = STAGES | {"-".join(stage.command): stage for stage in STAGES.values() if stage.command}
    if name in by_name:
        return by_name[name]
    matches = get_close_matches(name, by_name, 1)
    hint = f"did you mean {matches[0]!r}?" if matches else f"stages: {', '.join(STAGES)}"
    raise ConfigError(f"unknown stage {name!r}; {hint}")


def _refuse_key(key: str, described: Mapping[str, list[Setting]]) -> str:
    """Why a key is not explained, and which ones may be meant."""
    if key in STAGES:
        return f"{key!r} is a stage, not a setting; its settings: presto config {key}"
    if key in list_presets(PRESETS):
        return f"{key!r} is a preset, not a setting; its settings: presto config STAGE {key} ({', '.join(STAGES)})"
    keys = list(dict.fromkeys(setting.key for settings in described.values() for setting in settings))
    matches = [known for known in keys if known.endswith(f".{key}")] or get_close_matches(key, keys, 3)
    if not matches:  # a part of it is misspelled
        last = get_close_matches(key.rpartition(".")[2], {known.rpartition(".")[2]: None for known in keys}, 1)
        matches = [known for known in keys if known.rpartition(".")[2] in last]
    hint = f"did you mean {' or '.join(matches[:4])}?" if matches else "all sections: presto explain"
    return f"unknown config key {key!r}; {hint}"


def _list_sections(described: Mapping[str, list[Setting]]) -> dict[str, tuple[Setting, list[str]]]:
    """Top-level key -> its setting, and the stages that have it."""
    found: dict[str, tuple[Setting, list[str]]] = {}
    for stage, settings in described.items():
        for setting in settings:
            if "." not in setting.key:
                found.setdefault(setting.key, (setting, []))[1].append(stage)
    return found


def _list_inner(key: str, described: Mapping[str, list[Setting]]) -> list[Setting]:
    """What is directly in a section, or in the items of a list; each once, although several stages may have it."""
    inner = [s for settings in described.values() for s in settings if s.key.rpartition(".")[0] in (key, f"{key}[]")]
    return list({(s.key, s.type, s.range, s.kinds): s for s in inner}.values())
