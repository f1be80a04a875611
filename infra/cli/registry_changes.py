"""`presto registry pull|push|promote|rollback`: commands that move artifacts, or choose the champion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from infra.cli.options import AsJson, Preview, RegistryArgs, VersionName
from infra.cli.registry_access import open_catalog
from infra.cli.registry_maintenance import gc, verify
from infra.cli.registry_views import print_decision, print_result
from pipelines.presets.resolve import load_stage_config
from pipelines.registry import names
from pipelines.registry.names import RegistryError

Why = Annotated[str, typer.Option("--why", help="Required: the reason, which is recorded.", show_default=False)]


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
    if name:
        names.check_model_name("--name", name)
    if not folder.expanduser().is_dir():
        raise RegistryError(f"{folder} is no folder; name one of an artifact, such as presto registry pull makes")
    from pipelines.inference.lazy_mlflow import save_mlflow_model
    from pipelines.registry import transfer
    from pipelines.registry.artifact_lease import hold_artifact
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
    with hold_artifact(root, artifact_id, f"the push of {artifact_id}"):
        artifact = transfer.push(folder, target)
        tracker = open_tracker(config.tracking)
        run = _find_or_create_run(tracker, artifact_id)
        made = publish(tracker.client, model, artifact, mlflow_run=run, stage="push", root=root, pack=save_mlflow_model)
    message = f"push: {made.name}@v{made.number} = {artifact.id}, {artifact.uri}"
    print_result(message, payload | {"version": made.number}, as_json)


def _find_or_create_run(tracker: Any, artifact_id: str) -> str:
    """Return the MLflow run for a pushed version, which has no training run here: one per artifact."""
    if run := tracker.find_run(artifact_id):
        return str(run)
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
            help="Promote the version even if it is worse than its teacher or the champion, or if there are too "
            "few clips to tell; this is recorded.",
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
    name: Annotated[str, typer.Argument(help="Model whose last promotion is undone.")] = "presto-generator",
    settings: RegistryArgs = None,
    why: Why = "",
    dry_run: Preview = False,
    as_json: AsJson = False,
) -> None:
    """Undo the last promotion: the previous champion is champion again; if there was none, there is none again."""
    if "=" in name:  # NAME is left out
        name, settings = "presto-generator", [name, *(settings or [])]
    _require_reason(why, dry_run)
    catalog = open_catalog(settings)
    if name not in catalog.models:
        raise RegistryError(f"the registry has no model {name!r}; name one that presto registry list shows")
    from pipelines.registry.promotion import Promoter

    champion, former = Promoter(catalog.client).rollback(name, why=why, dry_run=dry_run)
    if champion:
        outcome = f"{champion.label} {'would be' if dry_run else 'is'} the champion again, in place of v{former.number}"
    else:
        outcome = (
            f"{name} {'would have' if dry_run else 'has'} no champion, as before v{former.number}, the first one; "
            "promote a version with: presto registry promote VERSION --why …"
        )
    payload = {"champion": champion and champion.to_dict(), "was": former.to_dict(), "done": not dry_run}
    print_result(f"rollback: {outcome}", payload, as_json)


def _require_reason(why: str, dry_run: bool) -> None:
    if not why.strip() and not dry_run:
        raise RegistryError('--why is empty; give the reason, which is recorded: --why "better at 4 steps"')


COMMANDS = (pull, push, promote, rollback, verify, gc)
