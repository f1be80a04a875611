"""Reads registered versions from MLflow's SQLite database without MLflow, whose import takes seconds; never writes.

Only a database of the schema that is known here is read so. Any other, and any server, is read by MLflow itself.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipelines.tracking.uri import sqlite_path, tracking_uri
from presto_core.config.sections import TrackingConfig

SCHEMA = "dc11669786a5"  # revision of MLflow's database whose tables are read below
DELETED = "Deleted_Internal"  # stage of a version that MLflow hides
WORKSPACE = "default"


@dataclass(frozen=True)
class StoredVersion:
    """A model version with the attributes of MLflow's that a catalog reads."""

    name: str
    version: int
    run_id: str
    creation_timestamp: int
    last_updated_timestamp: int
    current_stage: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class StoredModel:
    """A registered model with the attributes of MLflow's that a catalog reads."""

    name: str
    aliases: Mapping[str, int]
    tags: Mapping[str, str]
    latest_versions: tuple[StoredVersion, ...]


@dataclass(frozen=True)
class StoredRegistry:
    """All of a database's models and versions, as of one moment."""

    models: Mapping[str, StoredModel]
    versions: Mapping[str, Mapping[int, StoredVersion]]

    def find(self, name: str, *, number: int = 0, alias: str = "") -> StoredVersion | None:
        """Return a version by number or alias, or None."""
        model = self.models.get(name)
        if model is None:
            return None
        return self.versions.get(name, {}).get(number or model.aliases.get(alias, 0))

    def list_sorted(self, name: str, order_by: list[str]) -> list[StoredVersion]:
        """Return the versions of one model or, for an empty name, of all, in an order such as ["name ASC", …]."""
        found = [v for model in ([name] if name else self.versions) for v in self.versions.get(model, {}).values()]
        for order in reversed(order_by):
            key, _, direction = order.partition(" ")
            found.sort(key=lambda version: _ORDER[key](version), reverse=direction == "DESC")
        return found


_ORDER: Mapping[str, Any] = MappingProxyType(
    {
        "name": lambda version: version.name,
        "version_number": lambda version: version.version,
        "creation_timestamp": lambda version: version.creation_timestamp,
        "last_updated_timestamp": lambda version: version.last_updated_timestamp,
    }
)


def open_for_reading(config: TrackingConfig) -> Any:
    """Return what a catalog reads: the registry of a local database, else a client of MLflow.

    Raises:
        TrackingUriError, TrackingError: as `open_tracker`.
    """
    from pipelines.tracking.client import check_tracking, open_tracker  # with pyarrow: not for a command's start
    from pipelines.tracking.database import is_missing

    check_tracking(config)
    path = sqlite_path(tracking_uri(config))
    stored = None if path is None or is_missing(path) else read_registry(path)
    return open_tracker(config).client if stored is None else stored


def read_registry(path: Path) -> StoredRegistry | None:
    """Read all versions of a database; None, for MLflow to read it, if it is locked, damaged or of another schema."""
    from pipelines.tracking.database import READ_TIMEOUT_S

    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=READ_TIMEOUT_S)) as database:
            database.execute("BEGIN")  # one moment for all tables
            return _read_tables(database)
    except sqlite3.DatabaseError:
        return None


def _read_tables(database: sqlite3.Connection) -> StoredRegistry | None:
    if database.execute("SELECT version_num FROM alembic_version").fetchall() != [(SCHEMA,)]:
        return None
    if database.execute("SELECT 1 FROM registered_models WHERE workspace != ? LIMIT 1", [WORKSPACE]).fetchone():
        return None
    tags: dict[tuple[str, int], dict[str, str]] = {}
    for name, number, key, value in database.execute("SELECT name, version, key, value FROM model_version_tags"):
        tags.setdefault((name, number), {})[key] = value
    versions: dict[str, dict[int, StoredVersion]] = {}
    for name, number, run_id, created, updated, stage in database.execute(
        "SELECT name, version, run_id, creation_time, last_updated_time, current_stage FROM model_versions "
        "WHERE current_stage != ? ORDER BY name, version",
        [DELETED],
    ):
        versions.setdefault(name, {})[number] = StoredVersion(
            name, number, run_id, created, updated, stage, tags.get((name, number), {})
        )
    aliases: dict[str, dict[str, int]] = {}
    for name, alias, number in database.execute("SELECT name, alias, version FROM registered_model_aliases"):
        aliases.setdefault(name, {})[alias] = number
    model_tags: dict[str, dict[str, str]] = {}
    for name, key, value in database.execute("SELECT name, key, value FROM registered_model_tags"):
        model_tags.setdefault(name, {})[key] = value
    models = {}
    for (name,) in database.execute("SELECT name FROM registered_models ORDER BY name"):
        newest = {version.current_stage: version for version in versions.get(name, {}).values()}
        models[name] = StoredModel(name, aliases.get(name, {}), model_tags.get(name, {}), tuple(newest.values()))
    return StoredRegistry(models, versions)
