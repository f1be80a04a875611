"""`presto registry verify|gc`: check what is stored, and remove what nothing refers to."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from infra.cli.options import AsJson, Preview, RegistryArgs
from infra.cli.registry_access import open_catalog, print_skipped
from infra.cli.registry_views import print_json, print_result
from pipelines.console import console, print_table, print_warning, progress_bar
from pipelines.presets.resolve import load_stage_config
from pipelines.registry import names
from pipelines.registry.catalog import Catalog, Version

if TYPE_CHECKING:
    from pipelines.registry.garbage import GarbageCollector, GarbageItem


def verify(
    version: Annotated[str, typer.Argument(metavar="[VERSION]", help="Version to verify; default: all.")] = "",
    settings: RegistryArgs = None,
    dry_run: Preview = False,
    as_json: AsJson = False,
) -> None:
    """Re-read every byte of stored versions and check hashes, file types and the champion aliases."""
    if "=" in version:  # VERSION is left out
        version, settings = "", [version, *(settings or [])]
    catalog = open_catalog(settings)
    versions = [catalog.find(version)] if version else catalog.list_all()
    if not version:
        print_skipped(catalog)
    if dry_run:
        size = sum(v.size for v in versions)
        message = f"verify: would read {len(versions)} versions, {size / 1e6:.1f} MB"
        print_result(message, {"versions": len(versions)}, as_json)
        return
    problems = _find_problems(catalog, versions)
    if as_json:
        print_json({"versions": len(versions), "problems": problems})
    else:
        if rows := [[label, message] for label, messages in problems.items() for message in messages]:
            print_table("problems", ("version", "problem"), rows)
        console.print(f"verify: {len(versions)} versions read, {len(problems)} with problems", markup=False)
    if problems:
        raise typer.Exit(1)


def _find_problems(catalog: Catalog, versions: list[Version]) -> dict[str, list[str]]:
    from pipelines.registry.maintenance import verify_version

    found: dict[str, list[str]] = {}
    with progress_bar("verify", len(versions)) as bar:
        for number, version in enumerate(versions, 1):
            bar.update(number, version.label)
            if problems := verify_version(version):
                found[version.label] = problems
    for name in sorted({version.name for version in versions}):
        if problem := _sync_champion_alias(catalog, name):
            found[f"{name}@{names.CHAMPION}"] = [problem]
    return found


def _sync_champion_alias(catalog: Catalog, name: str) -> str:
    """Compare MLflow's champion with the promotion log's, and correct it: a killed command can leave them different."""
    from pipelines.registry.promotion import Promoter
    from pipelines.registry.promotion_log import PromotionLog
    from pipelines.registry.publish import open_promotion_log_folder

    model = catalog.all_models[name]
    if names.PROMOTION_LOG_TAG not in model.tags:
        return ""
    log = PromotionLog(open_promotion_log_folder(catalog.client, name))
    head, mlflow_version = log.read_head(), model.aliases.get(names.CHAMPION)
    if head is None:
        return f"MLflow's champion is v{mlflow_version}, but no promotion is recorded" if mlflow_version else ""
    if int(mlflow_version or 0) == head.version:
        return ""
    Promoter(catalog.client).sync_aliases(name, log)
    found, recorded = (f"v{number}" if number else "none" for number in (mlflow_version, head.version))
    return f"MLflow's champion was {found}, the recorded one is {recorded}; MLflow's alias is now fixed"


def gc(
    settings: RegistryArgs = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete them; without this option, only list them.")] = False,
    older_than_hours: Annotated[float, typer.Option(help="Keep artifacts that are younger than this.", min=0)] = 24,
    runs_older_than_days: Annotated[
        float, typer.Option(help="Keep unfinished runs that changed within this time.", min=0)
    ] = 30,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="First record that this storage.root belongs to this registry alone.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list, even with --delete or --adopt.")] = False,
    as_json: AsJson = False,
) -> None:
    """List artifacts that no version, ancestor or unfinished run refers to, and abandoned runs; --delete removes them.

    Refused if storage.root belongs to another registry, or if this one is empty. Everything is checked again just
    before it is deleted.
    """
    from pipelines.registry import root_identity
    from pipelines.registry.garbage import GarbageCollector, find_garbage
    from pipelines.storage.filesystem import absolute_uri, open_folder
    from pipelines.tracking.client import open_tracker, translate_mlflow_errors

    delete, adopt = delete and not dry_run, adopt and not dry_run
    config = load_stage_config("registry", settings or [], takes_preset=False)
    root = open_folder(absolute_uri(config.storage.root), setting="storage.root")
    older_than, runs_older_than = timedelta(hours=older_than_hours), timedelta(days=runs_older_than_days)
    catalog = open_catalog(settings)
    with translate_mlflow_errors(config.tracking):
        identity = root_identity.RegistryIdentity.read(catalog.client, open_tracker(config.tracking).experiment_id)
        versions = catalog.list_referenced()
        known = partial(root_identity.find_known_artifacts, catalog.client, versions)
    is_recorded = adopt or root_identity.check_ownership(root, identity, known)
    found = find_garbage(  # refused for an empty registry, before anything is adopted
        root, versions, older_than=older_than, runs_older_than=runs_older_than
    )
    if adopt or (delete and not is_recorded):
        identity = root_identity.adopt(root, identity)
    print_skipped(catalog)
    if found and not as_json:
        rows = [[item.uri, f"{item.bytes / 1e6:.1f}", item.why] for item in found]
        print_table(f"{len(found)} folders that nothing refers to", ("folder", "MB", "what"), rows)
    collector = GarbageCollector(identity, root, older_than, runs_older_than)
    kept = _delete_garbage(collector, found) if delete else {}
    left = [item for item in found if item.uri not in kept]
    size = sum(item.bytes for item in left)
    garbage = [{"uri": item.uri, "bytes": item.bytes, "why": item.why} for item in left]
    outcome = "deleted" if delete else "would be deleted; delete them with --delete"
    message = f"gc: {len(left)} folders below {root.uri}, {size / 1e6:.1f} MB {outcome}"
    print_result(message, {"garbage": garbage, "deleted": delete, "kept": kept}, as_json)


def _delete_garbage(collector: GarbageCollector, items: list[GarbageItem]) -> dict[str, str]:
    """Delete items; return those that were kept, and why."""
    kept = {}
    with progress_bar("gc", len(items)) as bar:
        for number, item in enumerate(items, 1):
            if reason := collector.delete(item):
                kept[item.uri] = reason
                print_warning(f"gc: {item.uri} is kept: {reason}")
            bar.update(number, item.uri)
    return kept
