"""What the verbs do that move or judge artifacts: pull, push, promote, rollback, verify, gc; each can be a trial."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from infra.cli.registry_views import print_json
from pipelines.console import (
    console,
    print_table,
    progress_bar,
)
from pipelines.inference.lazy_mlflow import save_mlflow_model
from pipelines.registry import (
    maintenance as upkeep,
)
from pipelines.registry import (
    names,
    transfer,
)
from pipelines.registry.catalog import Catalog, Version
from pipelines.registry.local_artifact import check_artifact_folder
from pipelines.registry.names import RegistryError
from pipelines.registry.promotion import Promoter
from pipelines.registry.promotion_checks import PromotionCheck
from pipelines.registry.promotion_log import PromotionLog
from pipelines.registry.publish import open_promotion_log_folder, publish
from pipelines.storage.filesystem import absolute_uri, open_folder
from pipelines.tracking.client import Tracker, open_tracker
from presto_core.artifacts.manifest import artifact_folder, read_artifact
from presto_core.artifacts.manifest_schema import content_hash, parse_files
from presto_core.config.schema import RegistryStage


def pull(config: RegistryStage, reference: str, folder: Path, *, dry_run: bool, as_json: bool) -> None:
    """Copy a version into a folder; see transfer.pull."""
    version = Catalog(open_tracker(config.tracking).client).find(reference)
    artifact = read_artifact(open_folder(version.uri))
    files = parse_files(artifact.manifest)
    size = sum(entry.bytes for entry in files.values())
    what = f"{version.name}@v{version.number} ({version.content[:12]}): {len(files)} files, {size / 1e6:.1f} MB"
    payload = {"version": version.to_dict(), "folder": str(folder), "files": len(files), "bytes": size}
    if dry_run:
        _print_result(f"pull: would copy {what} to {folder}", payload | {"pulled": False}, as_json)
        return
    new = transfer.pull(artifact, open_folder(version.uri), folder.expanduser().absolute(), content=version.content)
    _print_result(f"pull: {what} {'is in' if new else 'was already in'} {folder}", payload | {"pulled": new}, as_json)


def push(config: RegistryStage, folder: Path, *, name: str, dry_run: bool, as_json: bool) -> None:
    """Check, store and register a folder."""
    folder = folder.expanduser().absolute()
    manifest, files = check_artifact_folder(folder)
    model = name or names.NAME_OF_KIND[str(manifest["kind"])]
    root = open_folder(absolute_uri(config.storage.root))
    target = artifact_folder(root, str(manifest["id"]))
    payload = {
        "name": model,
        "id": manifest["id"],
        "content": content_hash(manifest),
        "uri": target.uri,
        "files": len(files),
    }
    if dry_run:
        _print_result(
            f"push: would store {manifest['kind']} {manifest['id']} in {target.uri}, as {model}", payload, as_json
        )
        return
    artifact = transfer.push(folder, target)
    tracker = open_tracker(config.tracking)
    run = _find_or_create_run(tracker, str(manifest["id"]))
    made = publish(tracker.client, model, artifact, mlflow_run=run, stage="push", root=root, pack=save_mlflow_model)
    _print_result(
        f"push: {made.name}@v{made.number} = {artifact.id}, {artifact.uri}", payload | {"version": made.number}, as_json
    )


def _find_or_create_run(tracker: Tracker, artifact_id: str) -> str:
    """The run that a version without one of its own hangs on: the same for the same artifact."""
    query = f"tags.`{names.RUN_ID}` = '{artifact_id}'"
    found = tracker.client.search_runs([tracker.experiment_id], query, max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {names.RUN_ID: artifact_id, names.STAGE: "push", "mlflow.runName": f"push-{artifact_id}"}
    run = tracker.client.create_run(tracker.experiment_id, tags=tags)
    tracker.client.set_terminated(run.info.run_id, status="FINISHED")
    return str(run.info.run_id)


def promote(config: RegistryStage, reference: str, *, why: str, dry_run: bool, as_json: bool) -> bool:
    """Put a version through the gate and make it champion; False where the gate refuses."""
    _check_reason(why, dry_run)
    client = open_tracker(config.tracking).client
    decision = Promoter(client).promote(reference, config.promote, why=why, dry_run=dry_run)
    if as_json:
        print_json(decision.to_dict())
        return decision.has_passed
    candidate = f"{decision.candidate.name}@v{decision.candidate.number}"
    _print_checks(f"{candidate} for champion", decision.checks)
    if not decision.has_passed:
        console.print(
            f"promote: {candidate} is refused, nothing changed; mend it, or the thresholds promote.…", style="red"
        )
    elif dry_run:
        console.print(f"promote: {candidate} would be promoted")
    elif decision.record is None:
        console.print(f"promote: {candidate} is the champion already")
    else:
        before = f", in place of v{decision.champion.number}" if decision.champion else ""
        console.print(f"promote: {candidate} is the champion{before}; undo it with: presto registry rollback")
    return decision.has_passed


def rollback(config: RegistryStage, name: str, *, why: str, dry_run: bool, as_json: bool) -> None:
    """Go back one champion."""
    _check_reason(why, dry_run)
    client = open_tracker(config.tracking).client
    if name not in Catalog(client).models:
        raise RegistryError(f"the registry has no model {name!r}; name one that presto registry list shows")
    former, current = Promoter(client).rollback(name, why=why, dry_run=dry_run)
    auxiliary = "would be" if dry_run else "is"
    payload = {"champion": former.to_dict(), "was": current.to_dict(), "done": not dry_run}
    _print_result(
        f"rollback: {name}@v{former.number} {auxiliary} the champion again, in place of v{current.number}",
        payload,
        as_json,
    )


def verify(config: RegistryStage, reference: str, *, dry_run: bool, as_json: bool) -> bool:
    """Read versions again; False where something is wrong."""
    client = open_tracker(config.tracking).client
    catalog = Catalog(client)
    versions = [catalog.find(reference)] if reference else catalog.list_all()
    if dry_run:
        size = sum(int(v.tags.get(names.SIZE, 0)) for v in versions)
        _print_result(
            f"verify: would read {len(versions)} versions, {size / 1e6:.1f} MB", {"versions": len(versions)}, as_json
        )
        return True
    found: dict[str, list[str]] = {}
    with progress_bar("verify", len(versions)) as bar:
        for number, version in enumerate(versions, 1):
            bar.update(number, f"{version.name}@v{version.number}")
            if problems := upkeep.verify_version(version):
                found[f"{version.name}@v{version.number}"] = problems
    for name in sorted({version.name for version in versions}):
        if problem := _check_alias(client, catalog, name):
            found[f"{name}@{names.CHAMPION}"] = [problem]
    if as_json:
        print_json({"versions": len(versions), "problems": found})
    else:
        if found:
            print_table(
                "problems", ("version", "what"), [[name, message] for name, all_ in found.items() for message in all_]
            )
        console.print(f"verify: {len(versions)} versions read, {len(found)} with problems")
    return not found


def _check_alias(client: object, catalog: Catalog, name: str) -> str:
    """Whether MLflow's champion is another one than the record's, as after a command that was killed in between."""
    if names.PROMOTION_LOG_TAG not in catalog.models[name].tags:
        return ""
    record = PromotionLog(open_promotion_log_folder(client, name))
    head, mlflow_version = record.read_head(), catalog.models[name].aliases.get(names.CHAMPION)
    if head is None:
        return f"MLflow says v{mlflow_version}, and no promotion is recorded" if mlflow_version else ""
    if mlflow_version is not None and int(mlflow_version) == head.version:
        return ""
    Promoter(client).sync_aliases(name, record)
    return f"MLflow said v{mlflow_version} and the record v{head.version}; MLflow's alias was mended just now"


def gc(config: RegistryStage, *, delete: bool, older_than_hours: float, as_json: bool) -> None:
    """List, and delete when told, what nothing refers to."""
    root = open_folder(absolute_uri(config.storage.root))
    versions: list[Version] = Catalog(open_tracker(config.tracking).client).list_all()
    found = upkeep.find_garbage(root, versions, older_than=timedelta(hours=older_than_hours))
    if not as_json and found:
        print_table(
            f"nothing refers to {len(found)} folders", ("folder", "MB", "what"),
            [[g.uri, f"{g.bytes / 1e6:.1f}", g.why] for g in found],
        )  # fmt: skip
    if delete:
        with progress_bar("gc", len(found)) as bar:
            for number, one in enumerate(found, 1):
                one.folder.delete()
                bar.update(number, one.uri)
    size = sum(g.bytes for g in found)
    payload = {"garbage": [{"uri": g.uri, "bytes": g.bytes, "why": g.why} for g in found], "deleted": delete}
    outcome = "deleted" if delete else "would be deleted; do it with --delete"
    _print_result(f"gc: {len(found)} folders below {root.uri}, {size / 1e6:.1f} MB {outcome}", payload, as_json)


def _check_reason(why: str, dry_run: bool) -> None:
    if not why.strip() and not dry_run:
        raise RegistryError('--why is empty; say the reason, which is recorded: --why "better at 4 steps"')


def _print_checks(title: str, checks: list[PromotionCheck]) -> None:
    rows = [[check.name, "pass" if check.passed else "FAIL", check.found, check.wanted] for check in checks]
    print_table(title, ("check", "", "found", "wanted"), rows)


def _print_result(message: str, payload: object, as_json: bool) -> None:
    if as_json:
        print_json(payload)
    else:
        console.print(message, markup=False)
