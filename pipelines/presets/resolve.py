"""From a preset and overrides to a stage's resolved configuration."""

from __future__ import annotations

from pathlib import Path

from presto_core.config.loader import load_config, to_yaml
from presto_core.config.schema import STAGES, StageConfig

PRESETS = Path(__file__).parent


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
    print(f"# presto {stage}")
    for name, value in config.derived().items():
        print(f"# {name}: {value}")
    if config.references():
        named = ", ".join(f"{role} {reference}" for role, reference in config.references().items())
        print(f"# run_id: follows from these settings and the ids of these, looked up when it runs: {named}")
    elif config.READS:
        print(f"# run_id: follows from these settings and {config.READS}, read when it runs")
    else:
        print(f"# run_id: {config.run_id()}")
    print(to_yaml(config))


def is_override(word: str) -> bool:
    key, equals, _ = word.partition("=")
    return bool(equals) and all(part.isidentifier() for part in key.split("."))
