"""Opens the registry for `presto registry`, and prints what there is to say where it has nothing to show."""

from __future__ import annotations

from infra.cli.registry_views import print_json
from pipelines.console import console, print_warning
from pipelines.presets.resolve import load_stage_config
from pipelines.registry.catalog import Catalog


def open_catalog(settings: list[str] | None) -> Catalog:
    """Open the registry that the settings name; RegistryError if there is none, with what to do."""
    from pipelines.registry.presence import check_registry_exists
    from pipelines.tracking.client import open_tracker

    config = load_stage_config("registry", settings or [], takes_preset=False)
    check_registry_exists(config.tracking)
    return Catalog(open_tracker(config.tracking).client)


def try_open_catalog(settings: list[str] | None, *, as_json: bool, reads_runs: bool = False) -> Catalog | None:
    """Open the registry to read versions; if there is none, print that instead of creating one.

    Args:
        reads_runs: runs are read too, for which MLflow is needed.
    """
    from pipelines.registry.presence import find_missing_database
    from pipelines.tracking.sqlite_registry import open_for_reading

    config = load_stage_config("registry", settings or [], takes_preset=False)
    if find_missing_database(config.tracking):
        print_empty(settings, as_json=as_json)
        return None
    return open_catalog(settings) if reads_runs else Catalog(open_for_reading(config.tracking))


def print_empty(settings: list[str] | None, *, as_json: bool) -> None:
    """Print that the registry has no version, and which commands make the first ones."""
    from pipelines.registry.presence import describe_empty

    if as_json:
        print_json([])
    config = load_stage_config("registry", settings or [], takes_preset=False)
    console.print(f"registry: {describe_empty(config.tracking)}", markup=False)


def print_skipped(catalog: Catalog) -> None:
    """Print how much of the same MLflow belongs to other tools, if anything does."""
    if note := catalog.describe_skipped():
        print_warning(f"registry: {note}")
