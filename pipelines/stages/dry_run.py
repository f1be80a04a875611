"""What `--dry-run` prints of a stage: its resolved settings and what follows from them."""

from __future__ import annotations

from pipelines.console import print_text
from pipelines.stages.table import STAGES
from presto_core.config.loader import to_yaml
from presto_core.config.stage import StageConfig


def print_config(name: str, config: StageConfig) -> None:
    """Print the settings as YAML, below comments with derived values and where the run id comes from."""
    stage = STAGES[name]
    print_text(f"# presto {' '.join(stage.command) or stage.name}")
    for name, value in config.derive_values().items():
        print_text(f"# {name}: {value}")
    if stage.writes_run:
        print_text(f"# run_id: {_describe_run_id(config)}")
    print_text(to_yaml(config))


def _describe_run_id(config: StageConfig) -> str:
    if references := config.references():
        inputs = ", ".join(f"{role} {reference}" for role, reference in references.items())
        return f"follows from these settings and the ids of these, looked up when it runs: {inputs}"
    if config.EXTERNAL_INPUT:
        return f"follows from these settings and {config.EXTERNAL_INPUT}, read when it runs"
    return config.run_id()
