"""Opens the registry for `presto registry`, and prints what there is to say where it has nothing to show."""

from __future__ import annotations

from infra.cli.registry_views import print_json
from pipelines.console import console, print_warning
from pipelines.presets.resolve import load_stage_config
from pipelines.registry.catalog import Catalog


def open_catalog(settings: list[str] | None) -> Catalog:
    """Open the registry that the settings name; RegistryError if there is none, with what to do."""
    from pipelines.registry.connection import open_registry

    return open_registry(load_stage_config("registry", settings or []).tracking)


def try_open_catalog(settings: list[str] | None, *, as_json: bool) -> Catalog | None:
    """Open the registry; if there is none, print that instead of creating one."""
    from pipelines.registry.connection import is_missing

    if is_missing(load_stage_config("registry", settings or []).tracking):
        print_empty(settings, as_json=as_json)
        return None
    return open_catalog(settings)


def print_empty(settings: list[str] | None, *, as_json: bool) -> None:
    """Print that the registry has no version, and which commands make the first ones."""
    from pipelines.registry.connection import describe_empty

    if as_json:
        print_json([])
    console.print(f"registry: {describe_empty(load_stage_config('registry', settings or []).tracking)}", markup=False)


def print_skipped(catalog: Catalog) -> None:
    """Print how much of the same MLflow belongs to other tools, if anything does."""
    if note := catalog.describe_skipped():
        print_warning(f"registry: {note}")
