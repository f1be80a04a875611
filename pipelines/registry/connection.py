"""Opens the registry for commands that read it, which create none where there is none."""

from __future__ import annotations

from pathlib import Path

from pipelines.redaction import strip_password
from pipelines.registry.catalog import Catalog
from pipelines.registry.names import RegistryError
from pipelines.tracking.client import open_tracker, tracking_uri
from presto_core.config.sections import TrackingConfig

SQLITE = "sqlite:///"
NEXT_COMMANDS = (
    "presto demo makes one of each kind; presto ingest and presto train-teacher begin with your own music; "
    "a registry elsewhere is tracking.uri=…"
)


def open_registry(config: TrackingConfig) -> Catalog:
    """Open the registry of MLflow.

    Raises:
        RegistryError: its database does not exist.
        TrackingError: see `open_tracker`.
    """
    if is_missing(config):
        raise RegistryError(describe_empty(config))
    return Catalog(open_tracker(config).client)


def is_missing(config: TrackingConfig) -> bool:
    """Return whether the registry is a database in a file that does not exist; opening it would create it."""
    uri = tracking_uri(config)
    return uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE).partition("?")[0]).exists()


def describe_empty(config: TrackingConfig) -> str:
    """Return where a registry without a version is, or would be, and which commands put some there."""
    state = "does not exist yet" if is_missing(config) else "has no version yet"
    return f"the registry {strip_password(tracking_uri(config))} {state}; {NEXT_COMMANDS}"
