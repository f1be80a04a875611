"""What the words after a verb mean: a preset, overrides, and the settings they resolve to."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from presto_core.config.loader import load_config, to_yaml
from presto_core.config.schema import STAGES, StageConfig

PRESETS = Path(__file__).parent / "presets"

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PRESET] [KEY=VALUE]...", help="A preset's name or file, then overrides.", show_default=False
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")]
OnlySay = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")]


def reads(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb that changes nothing stored, with a --dry-run all the same, so that scripts may give it to any verb."""

    @wraps(verb)
    def read(*args: Any, dry_run: bool = False, **kwargs: Any) -> None:
        if dry_run:
            does = (inspect.getdoc(verb) or "").partition("\n")[0]
            typer.echo(f"would do this, which changes no artifact, record or job: {does}")
        else:
            verb(*args, **kwargs)

    signature = inspect.signature(verb, eval_str=True)
    option = inspect.Parameter("dry_run", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=OnlySay)
    read.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])  # type: ignore[attr-defined]
    return read


def stage_config(stage: str, words: list[str]) -> StageConfig:
    """The configuration that a verb's words mean."""
    preset, overrides = split(words)
    return load_config(STAGES[stage], preset, overrides, preset_folder=PRESETS)


def split(words: list[str]) -> tuple[str | None, list[str]]:
    """Preset, if the first word is one, and overrides."""
    if words and not is_override(words[0]):
        return words[0], words[1:]
    return None, words


def show(stage: str, config: StageConfig) -> None:
    """Print a stage's resolved settings and what follows from them, as YAML."""
    typer.echo(f"# presto {stage}")
    for name, value in config.derived().items():
        typer.echo(f"# {name}: {value}")
    if config.references():
        named = ", ".join(f"{role} {reference}" for role, reference in config.references().items())
        typer.echo(f"# run_id: follows from these settings and the ids of these, looked up when it runs: {named}")
    elif config.READS:
        typer.echo(f"# run_id: follows from these settings and {config.READS}, read when it runs")
    else:
        typer.echo(f"# run_id: {config.run_id()}")
    typer.echo(to_yaml(config))


def is_override(word: str) -> bool:
    key, equals, _ = word.partition("=")
    return bool(equals) and all(part.isidentifier() for part in key.split("."))
