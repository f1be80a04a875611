"""`presto edit FILE "PROMPT" [key=value ...]`: change audio, repaint regions of it, or let it go on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from infra.cli.dispatch import dispatch
from infra.cli.generate import Device, ModelName, split_settings
from infra.cli.options import DryRun, On
from infra.jobs.command import StageCommand
from infra.jobs.targets import LOCAL
from pipelines.presets.resolve import PRESETS
from pipelines.stages.table import STAGES
from presto_core.config.loader import load_config
from presto_core.config.sampling import EditConfig


def edit(
    args: Annotated[
        list[str] | None,
        typer.Argument(
            metavar='FILE "PROMPT" [KEY=VALUE]...',
            help="An audio file, a prompt for what it becomes, then overrides such as edit.steps=8.",
            show_default=False,
        ),
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(
            "--region",
            metavar="FROM:TO",
            help="Repaint these seconds and keep every other sample; can be repeated (edit.regions).",
            show_default=False,
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="How much changes, from 0 (nothing) to 1 (everything) (edit.strength). Default: 0.5 for the whole "
            "file, 1 for regions.",
            show_default=False,
        ),
    ] = None,
    extend: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Add this many seconds of music, instead of changing the file (edit.extend).",
            show_default=False,
        ),
    ] = None,
    at: Annotated[
        Literal["end", "start"] | None,
        typer.Option(help="Where --extend adds music: at the end (default) or before the start (edit.at)."),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            metavar="TEXT",
            help="The prompt, if it would be misread as another argument.",
            show_default=False,
        ),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Preset to start from.")] = None,
    model: ModelName = None,
    device: Device = None,
    on: On = LOCAL,
    dry_run: DryRun = False,
) -> None:
    # the first argument is the file, even if its name looks like a setting
    files = [arg for arg in (args or [])[:1] if Path(arg).is_file()]
    given, overrides = split_settings((args or [])[len(files) :], "edit", EditConfig, hint="quote a prompt as --prompt")
    given = [*files, *given, *([] if prompt is None else [prompt])]
    if len(given) != 2 and not preset:
        raise typer.BadParameter(
            'give one file and one prompt in quotes, as in presto edit song.wav "solo piano" --region 2.0:4.5'
        )
    named = {"edit.file": given[:1], "edit.prompt": given[1:]}
    settings: list[str | tuple[str, Any]] = [*overrides, *((key, value[0]) for key, value in named.items() if value)]
    options = {
        "edit.regions": region or None, "edit.strength": strength, "edit.extend": extend, "edit.at": at,
        "inputs.generator": model, "cluster.device": device,
    }  # fmt: skip
    settings += [(key, value) for key, value in options.items() if value is not None]
    config = load_config(STAGES["edit"].config, preset, settings, preset_folder=PRESETS)
    dispatch(StageCommand("edit", config), on=on, dry_run=dry_run)
