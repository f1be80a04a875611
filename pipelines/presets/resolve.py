"""Resolves a preset and overrides into a stage's configuration."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from presto_core.config.loader import ConfigError, list_presets, load_config
from presto_core.config.schema import stage_configs
from presto_core.config.stage import StageConfig

PRESETS = Path(__file__).parent


def load_stage_config(stage: str, args: list[str], *, takes_preset: bool = True) -> StageConfig:
    """Return the configuration that a command's arguments describe.

    Args:
        takes_preset: whether its first argument may be the name of a preset; a file with settings always may.

    Raises:
        ConfigError: unknown preset or key, a value out of range, or a word that is neither.
    """
    if not takes_preset and args and not is_override(args[0]) and not Path(args[0]).is_file():
        raise ConfigError(_refuse_word(args[0], "settings of this command have the form dotted.key=value"))
    preset, overrides = split_preset(args)
    return load_config(stage_configs()[stage], preset, overrides, preset_folder=PRESETS)


def split_preset(args: list[str]) -> tuple[str | None, list[str]]:
    """Split arguments into the preset, if the first argument is one, and the overrides.

    Raises:
        ConfigError: a later word is no override.
    """
    preset = args[0] if args and not is_override(args[0]) else None
    if preset is not None and _is_key(preset) and not Path(preset).exists():
        raise ConfigError(f"{preset} is a setting without a value; write {preset}=VALUE, or presto explain {preset}")
    overrides = args[1:] if preset is not None else args
    for word in overrides:
        if "=" not in word:
            before = f"after the preset {preset}" if preset is not None else "after the first override"
            raise ConfigError(_refuse_word(word, f"{before}, all words have the form dotted.key=value"))
    return preset, overrides


def _is_key(word: str) -> bool:
    """Whether a word looks like a dotted key of some stage, and not like a file."""
    top, dot, _ = word.partition(".")
    return (
        bool(dot)
        and not word.endswith((".yaml", ".yml"))
        and any(top in stage.model_fields for stage in stage_configs().values())
    )


def _refuse_word(word: str, rule: str) -> str:
    """Why a word cannot stand where it does: a preset in the wrong position, or nothing known."""
    presets = list_presets(PRESETS)
    if word in presets:
        return f"{word!r} is a preset, which cannot stand here: {rule}"
    matches = get_close_matches(word, presets, 1)
    hint = f" ({matches[0]!r} would be a preset)" if matches else ""
    return f"{word!r} is not a setting: {rule}{hint}"


def is_override(arg: str) -> bool:
    """Whether an argument has the form `dotted.key=value`."""
    key, equals, _ = arg.partition("=")
    return bool(equals) and all(part.isidentifier() for part in key.split("."))
