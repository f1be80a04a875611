"""`presto teacher import FOLDER|ORG/NAME [key=value ...]`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from infra.cli.dispatch import dispatch
from infra.cli.options import DryRun, On
from infra.jobs.command import StageCommand
from infra.jobs.targets import LOCAL
from pipelines.presets.resolve import PRESETS, is_override
from pipelines.stages.table import STAGES
from presto_core.config.loader import ConfigError, list_presets, load_config


def import_teacher(
    args: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FOLDER|ORG/NAME [KEY=VALUE]...",
            help="A diffusers folder, or a repository of the Hugging Face hub; then overrides such as name=my-teacher.",
            show_default=False,
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the repository (model.revision); default: the newest.")
    ] = None,
    on: On = LOCAL,
    dry_run: DryRun = False,
) -> None:
    plain = [arg for arg in args or [] if not is_override(arg)]
    settings: list[str | tuple[str, Any]] = [arg for arg in args or [] if is_override(arg)]
    presets = [word for word in plain if word in list_presets(PRESETS) or word.endswith((".yaml", ".yml"))]
    sources = [word for word in plain if word not in presets]
    if len(sources) > 1 or len(presets) > 1:
        raise ConfigError(f"one teacher is imported at a time, not {' and '.join(plain)}")
    settings += [("model.source", source) for source in sources]
    if revision is not None:
        settings.append(("model.revision", revision))
    config = load_config(
        STAGES["import-teacher"].config, presets[0] if presets else None, settings, preset_folder=PRESETS
    )
    dispatch(StageCommand("import-teacher", config), on=on, dry_run=dry_run)
