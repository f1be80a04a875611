"""From a preset and overrides to a stage's resolved configuration."""

from __future__ import annotations

from pathlib import Path

from presto_core.config.loader import load_config, to_yaml
from presto_core.config.schema import STAGES, StageConfig

PRESETS = Path(__file__).parent


def load_stage_config(stage: str, args: list[str]) -> StageConfig:
    """The configuration that a verb's words mean."""
    preset, overrides = split_preset(args)
    return load_config(STAGES[stage], preset, overrides, preset_folder=PRESETS)


def split_preset(args: list[str]) -> tuple[str | None, list[str]]:
    """Preset, if the first word is one, and overrides."""
    if args and not is_override(args[0]):
        return args[0], args[1:]
    return None, args


def print_config(stage: str, config: StageConfig) -> None:
    """Print a stage's resolved settings and what follows from them, as YAML."""
    print(f"# presto {stage}")
    for name, value in config.derive_values().items():
        print(f"# {name}: {value}")
    if config.references():
        inputs = ", ".join(f"{role} {reference}" for role, reference in config.references().items())
        print(f"# run_id: follows from these settings and the ids of these, looked up when it runs: {inputs}")
    elif config.EXTERNAL_INPUT:
        print(f"# run_id: follows from these settings and {config.EXTERNAL_INPUT}, read when it runs")
    else:
        print(f"# run_id: {config.run_id()}")
    print(to_yaml(config))


def is_override(arg: str) -> bool:
    key, equals, _ = arg.partition("=")
    return bool(equals) and all(part.isidentifier() for part in key.split("."))
