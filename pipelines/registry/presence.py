"""Is there a registry that can have what a command names? Asked before MLflow is imported, which would create one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipelines.redaction import strip_password
from pipelines.registry.names import RegistryError, parse_reference
from pipelines.tracking.uri import sqlite_path, tracking_uri
from presto_core.config.sections import TrackingConfig
from presto_core.models.pretrained import find_pretrained

ARTIFACTS = "artifacts"  # below a storage root
# input role -> how to make one
NEXT_COMMANDS = {
    "dataset": "make a data set: presto corpus build, then presto ingest; of your own music: presto ingest "
    "ingest.source=FOLDER",
    "teacher": "train a teacher: presto train-teacher; or take the package's: inputs.teacher=presto-tiny-teacher",
    "layers": "make a layer-distilled model: presto distill-layers",
    "generator": "make a generator: presto distill-steps; or take the package's: presto-tiny-s",
    "report": "make a report: presto evaluate",
}


def find_missing_database(config: TrackingConfig) -> Path | None:
    """Return the file of the registry's database if it is one of this machine and does not exist; otherwise None."""
    path = sqlite_path(tracking_uri(config))
    return path if path and not path.exists() else None


def describe_empty(config: TrackingConfig) -> str:
    """Say that a registry does not exist, or has no version, and which commands put some there."""
    path = find_missing_database(config)
    where = strip_password(tracking_uri(config))
    state = f"there is no registry yet: {path} does not exist" if path else f"the registry {where} has no version yet"
    return (
        f"{state}; the first stage makes it (presto demo runs all of them; presto ingest ingest.source=FOLDER starts "
        "with your music). If it is elsewhere, run the command in that folder, or set tracking.uri"
    )


def check_registry_exists(config: TrackingConfig) -> None:
    """Refuse to look something up in a registry that does not exist.

    Raises:
        RegistryError: there is none; the message names the command that makes it.
    """
    if find_missing_database(config):
        raise RegistryError(describe_empty(config))


def check_references(config: TrackingConfig, references: Mapping[str, str]) -> None:
    """Refuse inputs that are named as the registry names them if there is no registry.

    Args:
        references: role -> name, as `StageConfig.references` gives them.

    Raises:
        RegistryError: there is none; the message names the command that makes the first of them.
        UserError: a model of the package is not in this installation.
    """
    path = find_missing_database(config)
    if path is None:
        return
    for role, reference in references.items():
        if find_pretrained(reference) is None and parse_reference(reference) is not None:
            raise RegistryError(
                f"inputs.{_name_input(role)}={reference} names nothing yet, since there is no registry: {path} does "
                f"not exist; {suggest_command(role)}. If it is elsewhere, run the command in that folder, or set "
                "tracking.uri and storage.root"
            )


def find_missing_artifact(reference: str, storage_root: str) -> Path | None:
    """Return the local folder that an artifact's path or id names if it does not exist; otherwise None."""
    if parse_reference(reference) is not None or "://" in reference or find_pretrained(reference):
        return None
    if "/" in reference:
        path = Path(reference)
    elif "://" in storage_root:
        return None
    else:
        path = Path(storage_root) / ARTIFACTS / reference
    return None if path.expanduser().exists() else path


def suggest_command(role: str) -> str:
    """What to run first if an input of this role is missing."""
    return NEXT_COMMANDS.get(role, NEXT_COMMANDS["generator"])


def _name_input(role: str) -> str:
    return "compared" if role.startswith("compared_") else role
