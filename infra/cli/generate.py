"""`presto generate "PROMPT" [key=value ...]`: what of its arguments are prompts, and what are settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from infra.cli.dispatch import dispatch
from infra.cli.options import DryRun, On
from infra.jobs.command import StageCommand
from infra.jobs.targets import LOCAL
from pipelines.console import print_text
from pipelines.presets.resolve import PRESETS, is_override
from pipelines.stages.table import STAGES
from presto_core.config.device_name import DEVICE_NAMES
from presto_core.config.loader import ConfigError, list_presets, load_config
from presto_core.config.sampling import GenerateConfig
from presto_core.config.schema import GenerateStage
from presto_core.config.section import Section
from presto_core.models.pretrained import DEFAULT_GENERATOR, list_pretrained

ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        help=f"A model in the package ({', '.join(list_pretrained()) or 'this installation has none'}), or "
        "champion, candidate-ls, presto-generator@v3, models:/…, an id or a URI (inputs.generator). Default: the "
        f"registry's presto-generator@candidate if there is one, else {DEFAULT_GENERATOR}.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help=f"Device to compute on: {DEVICE_NAMES} (cluster.device). Default: auto, a GPU if there is one.",
        show_default=False,
    ),
]


def generate(
    args: Annotated[
        list[str] | None,
        typer.Argument(
            metavar='"PROMPT" [KEY=VALUE]...',
            help='Prompts, then overrides such as generate.steps=8. Tempo and key can be part of a prompt: "techno in '
            'D minor, 128 bpm".',
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            metavar="TEXT",
            help="A prompt that would be misread as another argument, because it contains = or is the name of a "
            "preset. Can be repeated.",
            show_default=False,
        ),
    ] = None,
    prompts_file: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="Make one clip per row of a CSV or .jsonl file with the column prompt and, optionally, seed, steps, "
            "seconds, tempo_bpm, key (generate.prompts_file). Re-run the same command to continue after an "
            "interruption; clips.csv in generate.output lists the clips. cluster.num_workers=4 makes four at a "
            "time.",
            show_default=False,
        ),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Preset to start from.")] = None,
    loop: Annotated[
        bool, typer.Option("--loop", help="Make loops: the end of each clip flows into its start (generate.loop).")
    ] = False,
    section: Annotated[
        list[str] | None,
        typer.Option(
            "--section",
            metavar="SECONDS:PROMPT",
            help="Make one piece instead of clips: its prompt from this second on. Repeat the option, starting with "
            "0, and set generate.seconds (generate.sections).",
            show_default=False,
        ),
    ] = None,
    model: ModelName = None,
    device: Device = None,
    on: On = LOCAL,
    dry_run: DryRun = False,
) -> None:
    prompts, overrides = _split_args(args or [])
    prompts += prompt or []
    if not (args or prompts or section or preset or prompts_file):
        raise typer.BadParameter('Missing argument: give a prompt, as in presto generate "solo piano, slow, A minor"')
    settings: list[str | tuple[str, Any]] = [*overrides]
    if prompts:
        settings.append(("generate.prompts", prompts))
    if loop:
        settings.append(("generate.loop", True))
    if section:
        settings.append(("generate.sections", section))
    if prompts_file is not None:
        settings.append(("generate.prompts_file", prompts_file))
    if model is not None:
        settings.append(("inputs.generator", model))
    if device is not None:
        settings.append(("cluster.device", device))
    config = load_config(GenerateStage, preset, settings, preset_folder=PRESETS)
    dispatch(StageCommand("generate", config), on=on, dry_run=dry_run)
    if dry_run and on == LOCAL and prompts_file:
        from pipelines.inference.prompt_file import read_prompt_file

        print_text(f"# {len(read_prompt_file(Path(prompts_file), config.generate))} clips: all rows are right")


def _split_args(args: list[str]) -> tuple[list[str], list[str]]:
    """Split arguments into prompts and overrides.

    Raises:
        ConfigError: one is a preset, or an override of no setting of `generate`.
    """
    prompts, overrides = split_settings(args, "generate", GenerateConfig, hint="write --prompt {!r} if it is a prompt")
    for word in prompts:
        if word in list_presets(PRESETS) or (word.endswith((".yaml", ".yml")) and Path(word).is_file()):
            raise ConfigError(f"{word!r} is a preset; write --preset {word}, or --prompt {word} if it is a prompt")
    return prompts, overrides


def split_settings(
    args: list[str], stage: str, section: type[Section], *, hint: str = "presto explain lists settings"
) -> tuple[list[str], list[str]]:
    """Split arguments into words and overrides; raises ConfigError for an override of no setting of the stage."""
    overrides = [arg for arg in args if is_override(arg)]
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "seed":
            raise ConfigError(f"{override} has no effect on {stage}; write {stage}.seed={value}")
        if "." not in key and key not in STAGES[stage].config.model_fields:
            setting = f"write {stage}.{override}, or " if key in section.model_fields else ""
            raise ConfigError(f"{key!r} is not a setting of {stage}; {setting}{hint.format(override)}")
    return [arg for arg in args if not is_override(arg)], overrides
