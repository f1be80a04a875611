"""`presto registry pull|push|promote|rollback|verify|gc`: commands that move, promote, check or delete artifacts."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.cli.options import AsJson, Preview, RegistryArgs, VersionName
from infra.cli.registry_views import print_decision, print_json, print_result
from pipelines.console import console, print_table, progress_bar
from pipelines.presets.resolve import load_stage_config
from pipelines.registry import names
from pipelines.registry.catalog import Catalog, Version
from pipelines.registry.names import RegistryError

Why = Annotated[str, typer.Option("--why", help="Required: the reason, which is recorded.", show_default=False)]


def open_catalog(settings: list[str] | None) -> Catalog:
    """Open the registry that the settings name."""
    from pipelines.registry.presence import check_registry_exists
    from pipelines.tracking.client import open_tracker

    config = load_stage_config("registry", settings or [], takes_preset=False)
    check_registry_exists(config.tracking)
    return Catalog(open_tracker(config.tracking).client)


def pull(
    version: VersionName,
    folder: Annotated[Path, typer.Argument(help="Folder to create.")],
    settings: RegistryArgs = None,
    dry_run: Preview = False,
    as_json: AsJson = False,
) -> None:
    """Copy a version into a new folder: resumable, every hash and file type checked, all or nothing."""
    from pipelines.registry import transfer
    from pipelines.storage.filesystem import open_folder
    from presto_core.artifacts.manifest import read_artifact
    from presto_core.artifacts.manifest_schema import parse_files

    found = open_catalog(settings).find(version)
    source = open_folder(found.uri)
    artifact = read_artifact(source)
    files = parse_files(artifact.manifest)
    size = sum(entry.bytes for entry in files.values())
    what = f"{found.label} ({found.content[:12]}): {len(files)} files, {size / 1e6:.1f} MB"
    payload = {"version": found.to_dict(), "folder": str(folder), "files": len(files), "bytes": size}
    if dry_run:
        print_result(f"pull: would copy {what} to {folder}", payload | {"pulled": False}, as_json)
        return
    new = transfer.pull(artifact, source, folder.expanduser().absolute(), content=found.content)
    print_result(f"pull: {what} {'is in' if new else 'was already in'} {folder}", payload | {"pulled": new}, as_json)


def push(
    folder: Annotated[Path, typer.Argument(help="Folder of an artifact, such as one pulled elsewhere.")],
    settings: RegistryArgs = None,
    name: Annotated[str, typer.Option(help="Model to register it under; default: by its kind.")] = "",
    dry_run: Preview = False,
    as_json: AsJson = False,
) -> None:
    """Store and register an artifact's folder; refused unless it matches its manifest exactly."""
    config = load_stage_config("registry", settings or [], takes_preset=False)
    if not folder.expanduser().is_dir():
        raise RegistryError(f"{folder} is no folder; name one of an artifact, such as presto registry pull makes")
    from pipelines.inference.lazy_mlflow import save_mlflow_model
    from pipelines.registry import transfer
    from pipelines.registry.local_artifact import check_artifact_folder
    from pipelines.registry.publish import publish
    from pipelines.storage.filesystem import absolute_uri, open_folder
    from pipelines.tracking.client import open_tracker
    from presto_core.artifacts.manifest import artifact_folder
    from presto_core.artifacts.manifest_schema import content_hash

    folder = folder.expanduser().absolute()
    manifest, files = check_artifact_folder(folder)
    artifact_id, kind = str(manifest["id"]), str(manifest["kind"])
    model = name or names.NAME_OF_KIND[kind]
    root = open_folder(absolute_uri(config.storage.root), setting="storage.root")
    target = artifact_folder(root, artifact_id)
    payload: dict[str, Any] = {"name": model, "id": artifact_id, "content": content_hash(manifest), "uri": target.uri}
    payload["files"] = len(files)
    if dry_run:
        print_result(f"push: would store {kind} {artifact_id} in {target.uri}, as {model}", payload, as_json)
        return
    artifact = transfer.push(folder, target)
    tracker = open_tracker(config.tracking)
    run = _find_or_create_run(tracker, artifact_id)
    made = publish(tracker.client, model, artifact, mlflow_run=run, stage="push", root=root, pack=save_mlflow_model)
    message = f"push: {made.name}@v{made.number} = {artifact.id}, {artifact.uri}"
    print_result(message, payload | {"version": made.number}, as_json)


def _find_or_create_run(tracker: Any, artifact_id: str) -> str:
    """Return the MLflow run for a pushed version, which has no training run here: one per artifact."""
    query = f"tags.`{names.RUN_ID}` = '{artifact_id}'"
    found = tracker.client.search_runs([tracker.experiment_id], query, max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {names.RUN_ID: artifact_id, names.STAGE: "push", "mlflow.runName": f"push-{artifact_id}"}
    run = tracker.client.create_run(tracker.experiment_id, tags=tags)
    tracker.client.set_terminated(run.info.run_id, status="FINISHED")
    return str(run.info.run_id)


def promote(
    version: VersionName,
    args: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PRESET] [KEY=VALUE]...",
            help="Preset with a section `promote`, then promote.max_mmd=...",
            show_default=False,
        ),
    ] = None,
    why: Why = "",
    accept_worse: Annotated[
        bool,
        typer.Option(
            "--accept-worse",
            help="Promote it though it is worse than its teacher or the champion, or not known not to be; recorded.",
        ),
    ] = False,
    dry_run: Preview = False,
    as_json: AsJson = False,
) -> None:
    """Make a version champion if its files, licence, health, latency and quality pass: it must not be worse than the
    model it was distilled from, nor than the champion, on enough clips to tell."""
    from pipelines.registry.presence import check_registry_exists

    config: Any = load_stage_config("registry", args or [])
    _require_reason(why, dry_run)
    check_registry_exists(config.tracking)
    from pipelines.registry.promotion import Promoter
    from pipelines.tracking.client import open_tracker

    promoter = Promoter(open_tracker(config.tracking).client)
    decision = promoter.promote(version, config.promote, why=why, accept_worse=accept_worse, dry_run=dry_run)
    print_decision(decision, dry_run=dry_run, as_json=as_json)
    if not decision.has_passed:
        raise typer.Exit(1)


def rollback(
    name: Annotated[str, typer.Argument(help="Model whose previous champion is restored.")] = "presto-generator",
    settings: RegistryArgs = None,
    why: Why = "",
    dry_run: Preview = False,
    as_json: AsJson = False,
) -> None:
    """Make the previous champion champion again."""
    if "=" in name:  # NAME is left out
        name, settings = "presto-generator", [name, *(settings or [])]
    _require_reason(why, dry_run)
    catalog = open_catalog(settings)
    if name not in catalog.models:
        raise RegistryError(f"the registry has no model {name!r}; name one that presto registry list shows")
    from pipelines.registry.promotion import Promoter

    former, current = Promoter(catalog.client).rollback(name, why=why, dry_run=dry_run)
    outcome = f"{'would be' if dry_run else 'is'} the champion again, in place of v{current.number}"
    payload = {"champion": former.to_dict(), "was": current.to_dict(), "done": not dry_run}
    print_result(f"rollback: {former.label} {outcome}", payload, as_json)


def _require_reason(why: str, dry_run: bool) -> None:
    if not why.strip() and not dry_run:
        raise RegistryError('--why is empty; give the reason, which is recorded: --why "better at 4 steps"')


def verify(
    version: Annotated[str, typer.Argument(metavar="[VERSION]", help="Version to read; default: all.")] = "",
    settings: RegistryArgs = None,
    dry_run: Preview = False,
    as_json: AsJson = False,
) -> None:
    """Re-read every byte of stored versions and check hashes, file types and the champion aliases."""
    if "=" in version:  # VERSION is left out
        version, settings = "", [version, *(settings or [])]
    catalog = open_catalog(settings)
    versions = [catalog.find(version)] if version else catalog.list_all()
    if dry_run:
        size = sum(int(v.tags.get(names.SIZE, 0)) for v in versions)
        message = f"verify: would read {len(versions)} versions, {size / 1e6:.1f} MB"
        print_result(message, {"versions": len(versions)}, as_json)
        return
    problems = _find_problems(catalog, versions)
    if as_json:
        print_json({"versions": len(versions), "problems": problems})
    else:
        if rows := [[label, message] for label, messages in problems.items() for message in messages]:
            print_table("problems", ("version", "problem"), rows)
        console.print(f"verify: {len(versions)} versions read, {len(problems)} with problems")
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

    model = catalog.models[name]
    if names.PROMOTION_LOG_TAG not in model.tags:
        return ""
    log = PromotionLog(open_promotion_log_folder(catalog.client, name))
    head, mlflow_version = log.read_head(), model.aliases.get(names.CHAMPION)
    if head is None:
        return f"MLflow's champion is v{mlflow_version}, but no promotion is recorded" if mlflow_version else ""
    if mlflow_version is not None and int(mlflow_version) == head.version:
        return ""
    Promoter(catalog.client).sync_aliases(name, log)
    return f"MLflow's champion was v{mlflow_version}, the recorded one is v{head.version}; MLflow's alias is now fixed"


def gc(
    settings: RegistryArgs = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete; without it, only list.")] = False,
    older_than_hours: Annotated[float, typer.Option(help="Keep what is younger than this.", min=0)] = 24,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list, even with --delete.")] = False,
    as_json: AsJson = False,
) -> None:
    """List artifacts that no version, ancestor or running stage refers to; with --delete, remove them."""
    from pipelines.registry.maintenance import find_garbage
    from pipelines.storage.filesystem import absolute_uri, open_folder

    delete = delete and not dry_run
    config = load_stage_config("registry", settings or [], takes_preset=False)
    root = open_folder(absolute_uri(config.storage.root), setting="storage.root")
    found = find_garbage(root, open_catalog(settings).list_all(), older_than=timedelta(hours=older_than_hours))
    if found and not as_json:
        rows = [[item.uri, f"{item.bytes / 1e6:.1f}", item.why] for item in found]
        print_table(f"{len(found)} folders that nothing refers to", ("folder", "MB", "what"), rows)
    if delete:
        with progress_bar("gc", len(found)) as bar:
            for number, item in enumerate(found, 1):
                item.folder.delete()
                bar.update(number, item.uri)
    size = sum(item.bytes for item in found)
    garbage = [{"uri": item.uri, "bytes": item.bytes, "why": item.why} for item in found]
    outcome = "deleted" if delete else "would be deleted; delete them with --delete"
    message = f"gc: {len(found)} folders below {root.uri}, {size / 1e6:.1f} MB {outcome}"
    print_result(message, {"garbage": garbage, "deleted": delete}, as_json)


COMMANDS = (pull, push, promote, rollback, verify, gc)
