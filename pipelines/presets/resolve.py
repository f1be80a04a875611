"""Resolves a preset and overrides into a stage's configuration."""

from __future__ import annotations

from pathlib import Path

from presto_core.config.loader import load_config
from presto_core.config.schema import stage_configs
from presto_core.config.stage import StageConfig

PRESETS = Path(__file__).parent


def load_stage_config(stage: str, args: list[str]) -> StageConfig:
    """Return the configuration that a command's arguments describe."""
    preset, overrides = split_preset(args)
    return load_config(stage_configs()[stage], preset, overrides, preset_folder=PRESETS)


def split_preset(args: list[str]) -> tuple[str | None, list[str]]:
    """Split arguments into the preset, if the first argument is one, and the overrides."""
    if args and not is_override(args[0]):
        return args[0], args[1:]
    return None, args


def is_override(arg: str) -> bool:
    """Whether an argument has the form `dotted.key=value`."""
    key, equals, _ = arg.partition("=")
    return bool(equals) and all(part.isidentifier() for part in key.split("."))
