"""From a preset and overrides to a stage's resolved configuration."""

from __future__ import annotations

from pathlib import Path

from presto_core.config.loader import load_config
from presto_core.config.schema import StageConfig, stage_configs

PRESETS = Path(__file__).parent


def load_stage_config(stage: str, args: list[str]) -> StageConfig:
    """The configuration that a command's arguments describe."""
    preset, overrides = split_preset(args)
    return load_config(stage_configs()[stage], preset, overrides, preset_folder=PRESETS)


def split_preset(args: list[str]) -> tuple[str | None, list[str]]:
    """Preset, if the first argument is one, and overrides."""
    if args and not is_override(args[0]):
        return args[0], args[1:]
    return None, args


def is_override(arg: str) -> bool:
    key, equals, _ = arg.partition("=")
    return bool(equals) and all(part.isidentifier() for part in key.split("."))
