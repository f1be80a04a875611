"""Registers artifacts: one version per content, tagged with what it is and what it was made from."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.redaction import redact_items
from pipelines.registry import names
from pipelines.registry.catalog import Catalog, Version
from pipelines.registry.compatibility import distillation_method
from pipelines.registry.conflicts import retry_conflicts as retry_conflicts
from pipelines.registry.resolve import resolve_pretrained
from pipelines.registry.run_facts import GIT_COMMIT
from pipelines.registry.version_query import find_versions
from pipelines.registry.version_settings import make_settings_tag
from pipelines.storage.filesystem import open_folder
from pipelines.storage.lease import hold_lease
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.manifest import Artifact
from presto_core.artifacts.manifest_schema import content_hash, parse_files
from presto_core.artifacts.store import download
from presto_core.training.health import STEP_DISTILLATION, TEACHER

Pack = Callable[[Path, Path], None]
"""Writes an artifact's folder as an MLflow model into another folder."""


@dataclass(frozen=True)
class PublishedVersion:
    """A registered version and its most specific alias."""

    number: int
    name: str
    alias: str


def publish(
    client: Any,
    name: str,
    artifact: Artifact,
    *,
    mlflow_run: str,
    stage: str,
    root: Folder,
    pack: Pack,
    check_holder: Callable[[], None] = lambda: None,
) -> PublishedVersion:
    """Register an artifact under a name unless its content is registered; in both cases make it the candidate.

    Safe with concurrent writers: there is one version per content, and the newest one is the candidate.

    Args:
        mlflow_run: its MLflow run, which gets the tags that searches read.
        stage: name of the stage that made it.
        root: storage root for the promotion log of a new model.
        pack: writes the MLflow model.
        check_holder: raises if another process has taken over the run that made it; called before each change.
    """
    check_holder()
    log_folder = _ensure_model(client, name, root)
    content = content_hash(artifact.manifest)
    number, is_new = _find_by_content(client, name, content), False
    if number is None:
        # one writer at a time, however slow its upload is; the next ones find what it registered
        with hold_lease(log_folder.child("versions").child(content), f"registering {artifact.id}", wait=True) as lease:
            number = _find_by_content(client, name, content)
            if number is None:
                source, is_new = _log_files(client, artifact, mlflow_run, pack), True
                lease.check()
                check_holder()
                number = _create_version(client, name, artifact, content, source, mlflow_run=mlflow_run, stage=stage)
    check_holder()
    if not is_new:
        _update_location(client, name, number, artifact.uri)
        _complete_run(client, name, number, artifact, mlflow_run=mlflow_run)
    method = distillation_method(artifact) if artifact.kind in names.MODEL_KINDS else ""
    aliases = [(names.CANDIDATE, "")]
    aliases += [(names.candidate_alias(method), method)] if artifact.kind in ("layers", "generator") else []
    for alias, alias_method in aliases:
        _set_alias(client, name, alias, number, method=alias_method, is_new=is_new)
    return PublishedVersion(number, name, aliases[-1][0])


def _ensure_model(client: Any, name: str, root: Folder) -> Folder:
    """Create the model if it is missing, and return the folder of its promotion log."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, tags={names.PROMOTION_LOG_TAG: root.child("registry").child(name).uri})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return open_promotion_log_folder(client, name, root)


def open_promotion_log_folder(client: Any, name: str, root: Folder | None = None) -> Folder:
    """Open the folder of a model's promotion log; a model created by hand gets one below `root`."""
    folder = find_promotion_log_folder(client, name)
    if folder is None and root is not None:
        folder = root.child("registry").child(name)
        retry_conflicts(partial(client.set_registered_model_tag, name, names.PROMOTION_LOG_TAG, folder.uri))
    if folder is None:
        raise names.RegistryError(
            f"presto did not register {name}, it has no promotion log; push an artifact to it first"
        )
    return folder


def find_promotion_log_folder(client: Any, name: str) -> Folder | None:
    """Return the folder of a model's promotion log; None if it has none, as a model that another tool made."""
    uri = client.get_registered_model(name).tags.get(names.PROMOTION_LOG_TAG)
    return open_folder(uri) if uri else None


def _find_by_content(client: Any, name: str, content: str) -> int | None:
    found = next(find_versions(client, name=name, tags={names.CONTENT: content}, page_size=10), None)
    return int(found.version) if found else None


def _update_location(client: Any, name: str, number: int, uri: str) -> None:
    """Set a version's URI to the last written copy of its content: an older copy may be deleted."""
    if client.get_model_version(name, str(number)).tags.get(names.ARTIFACT_URI) != uri:
        retry_conflicts(partial(client.set_model_version_tag, name, str(number), names.ARTIFACT_URI, uri))


def _create_version(
    client: Any, name: str, artifact: Artifact, content: str, source: str, *, mlflow_run: str, stage: str
) -> int:
    run = client.get_run(mlflow_run)
    tags = _make_tags(client, artifact, content, stage) | _copy_run_facts(run)
    settings = {names.SETTINGS: make_settings_tag(artifact, run.data.params)}  # in the run, they are its params
    created = retry_conflicts(
        lambda: client.create_model_version(name, source=source, run_id=mlflow_run, tags=tags | settings)
    )
    version = int(created.version)
    _record_in_run(client, name, version, artifact, tags, mlflow_run=mlflow_run)
    return version


def _complete_run(client: Any, name: str, number: int, artifact: Artifact, *, mlflow_run: str) -> None:
    """Give a version's run what a command that was killed after it registered the version did not."""
    version = client.get_model_version(name, str(number))
    if version.run_id == mlflow_run and names.make_version_tag(name) not in client.get_run(mlflow_run).data.tags:
        tags = {key: value for key, value in version.tags.items() if key != names.SETTINGS}
        _record_in_run(client, name, number, artifact, tags, mlflow_run=mlflow_run)


def _record_in_run(
    client: Any, name: str, number: int, artifact: Artifact, tags: dict[str, str], *, mlflow_run: str
) -> None:
    """Copy a version's facts to its run, for MLflow's own pages; last, the tag that says that all is there."""
    for metric, size in _sum_dataset_sizes(artifact).items():
        client.log_metric(mlflow_run, f"{names.METRIC}{metric}", size)
    for key, value in (tags | {names.make_version_tag(name): str(number)}).items():
        retry_conflicts(partial(client.set_tag, mlflow_run, key, value))


def _copy_run_facts(run: Any) -> dict[str, str]:
    """Facts of a run that its version keeps, since the run can be deleted: the code, and how training ended."""
    facts = {names.COMMIT: run.data.tags.get(GIT_COMMIT), names.ENVIRONMENT: run.data.tags.get(names.ENVIRONMENT)}
    signals = {name: run.data.metrics[name] for name in (*STEP_DISTILLATION, *TEACHER) if name in run.data.metrics}
    facts[names.HEALTH] = json.dumps(signals) if signals else ""
    return {key: value for key, value in facts.items() if value}


def _sum_dataset_sizes(artifact: Artifact) -> dict[str, float]:
    """Rows and hours of a data set, over all splits."""
    sizes = {key: artifact.manifest.get("dataset", {}).get(key) for key in ("rows", "hours")}
    return {key: float(sum(size.values())) for key, size in sizes.items() if isinstance(size, dict)}


def _log_files(client: Any, artifact: Artifact, mlflow_run: str, pack: Pack) -> str:
    """Log a version's files to MLflow: a model that it can serve, or the manifest of other kinds; return their URI."""
    if artifact.kind not in names.MODEL_KINDS:
        client.log_dict(mlflow_run, artifact.manifest, "artifact/manifest.json")
        return f"runs:/{mlflow_run}/artifact"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "artifact"
        folder.mkdir()
        source = open_folder(artifact.uri)
        for file in ("manifest.json", *parse_files(artifact.manifest)):
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as sink:
                download(source, file, sink)
        pack(folder, Path(scratch) / "model")
        client.log_artifacts(mlflow_run, str(Path(scratch) / "model"), "model")
    return f"runs:/{mlflow_run}/model"


def _make_tags(client: Any, artifact: Artifact, content: str, stage: str) -> dict[str, str]:
    """Return the tags by which searches find a version."""
    manifest = artifact.manifest
    parents = {role: str(parent) for role, parent in manifest.get("parents", {}).items()}
    parent_versions = Catalog(client).find_by_artifacts([p for p in parents.values() if "/" not in p])
    licences = set(manifest.get("dataset", {}).get("licences", []))
    licences |= {licence for parent in parent_versions for licence in parent.licences}
    licences |= {licence for parent in parents.values() for licence in _read_pretrained_licences(parent)}
    tags: dict[str, Any] = {
        names.CONTENT: content,
        names.ARTIFACT_ID: artifact.id,
        names.ARTIFACT_URI: artifact.uri,
        names.KIND: artifact.kind,
        names.STAGE: stage,
        names.RUN_ID: artifact.id,
        names.PARENTS: f" {' '.join(parents.values())} ",
        names.LICENCES: json.dumps(sorted(licences)),
        names.SIZE: str(sum(entry.bytes for entry in parse_files(manifest).values())),
        **{f"{names.PARENT}{role}": parent for role, parent in parents.items()},
        **{f"{names.MEASURED}{key}": size for key, size in _sum_dataset_sizes(artifact).items()},
    }
    if artifact.kind in names.MODEL_KINDS:
        tags[names.METHOD] = distillation_method(artifact)
        tags[names.BUDGET] = json.dumps((manifest.get("model") or {}).get("layer_budget"))
    return redact_items(tags)


def _read_pretrained_licences(artifact_id: str) -> list[str]:
    """The licences of the data that a model of the package was trained on; none for any other artifact."""
    artifact = resolve_pretrained(artifact_id)
    return list(artifact.manifest.get("export", {}).get("data_licences", [])) if artifact else []


def _set_alias(client: Any, name: str, alias: str, number: int, *, method: str, is_new: bool) -> None:
    """Move an alias; among concurrent new versions, to the newest one, in whatever order they are written."""
    retry_conflicts(partial(client.set_registered_model_alias, name, alias, str(number)))
    while is_new:
        versions: list[Version] = Catalog(client).list_newest(name, limit=1, method=method)
        if not versions or versions[0].number <= number:
            return
        number = versions[0].number
        retry_conflicts(partial(client.set_registered_model_alias, name, alias, str(number)))
