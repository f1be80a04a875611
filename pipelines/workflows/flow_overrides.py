"""Settings that have no effect on several stages in a row: those no stage reads, and those the flow sets itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipelines.stages.table import STAGES
from presto_core.config.loader import ConfigError

MADE_INPUTS = {"dataset", "layers", "generator", "compared"}  # roles whose artifacts every flow makes
OWN_SERVER = "it starts a server of its own; --local takes a folder instead"


def check_read(command: str, overrides: Iterable[str], stages: Iterable[str], hints: Mapping[str, str] = {}) -> None:
    """Refuse an override of a section that none of these stages has; raises ConfigError.

    Args:
        hints: section -> what to do instead.
    """
    read = {section for name in stages for section in STAGES[name].config.model_fields}
    for override in overrides:
        top = override.partition("=")[0].partition(".")[0]
        owners = [name for name, stage in STAGES.items() if top in stage.config.model_fields]
        if owners and top not in read:
            commands = ", ".join(f"presto {' '.join(STAGES[name].command) or name}" for name in owners)
            raise ConfigError(f"{override} has no effect on {command}: {commands} reads {top}{hints.get(top, '')}")


def check_not_fixed(command: str, overrides: Iterable[str], made: Iterable[str], *, storage: str = "") -> None:
    """Refuse an override of an input that the flow makes itself, or of its storage; raises ConfigError.

    Args:
        made: roles whose artifacts the flow makes.
        storage: why storage.root has no effect; empty if it has.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if key in {f"inputs.{role}" for role in made}:
            raise ConfigError(f"{override} has no effect on {command}, which makes its own; leave it out")
        if key == "storage.root" and storage:
            raise ConfigError(f"{override} has no effect on {command}: {storage}")
