"""What can be refused before a stage is imported: paths that do not exist, and inputs that nothing has made yet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipelines.registry.presence import check_references, find_missing_artifact, suggest_command
from pipelines.stages.table import OWN_FOLDERS, STAGES
from presto_core.config.data import IngestConfig
from presto_core.config.schema import IngestStage
from presto_core.config.stage import StageConfig
from presto_core.errors import UserError


def check_inputs(stage: str, config: StageConfig) -> None:
    """Refuse a stage whose inputs are not there, as far as this machine can tell at once.

    Raises:
        UserError: a local path does not exist, or there is no registry; the message names what to run first.
    """
    for key in (*STAGES[stage].input_paths, *OWN_FOLDERS):
        for label, path in _list_paths(config, key):
            if not path.exists():
                raise UserError(_refuse_path(config, label, path))
    check_references(config.tracking, config.references())
    for role, reference in config.references().items():
        if missing := find_missing_artifact(reference, config.storage.root):
            raise UserError(
                f"inputs.{role.partition('_')[0]}={reference} is not there: {missing} does not exist; correct it or "
                "storage.root; what there is: presto registry list"
            )


def _list_paths(config: StageConfig, key: str) -> list[tuple[str, Path]]:
    """The local paths that a setting holds, each with its key."""
    section, _, name = key.partition(".")
    value = getattr(getattr(config, section), name)
    if isinstance(value, Mapping):
        labeled = [(f"{key}.{item}", text) for item, text in value.items()]
    else:
        labeled = [(key, text) for text in ([value] if isinstance(value, str) else value)]
    return [
        (label, Path(text.removeprefix("file://")).expanduser()) for label, text in labeled if text and _is_local(text)
    ]


def _is_local(text: str) -> bool:
    return text.startswith("file://") or "://" not in text


def _refuse_path(config: StageConfig, key: str, path: Path) -> str:
    if isinstance(config, IngestStage) and key == "ingest.source" and config.ingest.source == IngestConfig().source:
        return f"there is no music yet: {key}={path} does not exist; {suggest_command('dataset')}"
    return f"{key}={path} does not exist; correct the path"
