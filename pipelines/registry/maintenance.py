"""Maintenance: `verify_version` re-reads a stored version, `find_garbage` finds artifacts that nothing refers to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pipelines.registry.catalog import Version
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.folder import MANIFEST, Folder
from presto_core.artifacts.manifest import artifact_folder, read_artifact
from presto_core.artifacts.manifest_schema import check_artifact, content_hash, list_former_pages
from presto_core.artifacts.resumable_read import read_blocks
from presto_core.artifacts.run_layout import RUN_FILE
from presto_core.artifacts.store import read_bytes
from presto_core.artifacts.validate import UnsafeArtifactError, check_content
from presto_core.errors import UserError

FORK_SEPARATOR = "/"


def verify_version(version: Version, on_read: Callable[[int], None] = lambda size: None) -> list[str]:
    """Re-read a version's stored bytes and return the problems, one message each.

    Args:
        on_read: called with the size of each file that was read.
    """
    try:
        artifact = read_artifact(open_folder(version.uri))
        files = check_artifact(artifact.manifest)
    except UserError as error:
        return [str(error)]
    content = content_hash(artifact.manifest)
    problems = []
    if version.content and content != version.content:
        problems.append(f"its manifest changed: content {content[:12]}, but the registry has {version.content[:12]}")
    folder = open_folder(version.uri)
    for name, entry in files.items():
        try:
            _check_file(folder, name, entry.sha256, entry.bytes)
        except UserError as error:
            problems.append(str(error))
        on_read(entry.bytes)
    foreign = {info.path for info in folder.list_files(recursive=True)}
    foreign -= {folder.file_path(name) for name in (MANIFEST, *files, *list_former_pages(artifact.manifest))}
    problems += [f"{path} is not listed in the manifest" for path in sorted(foreign)[:5]]
    return problems


def _check_file(folder: Folder, name: str, sha256: str, size: int) -> None:
    digest, count = hashlib.sha256(), 0
    for block in read_blocks(folder, name):
        digest.update(block)
        count += len(block)
    if count != size:
        raise UnsafeArtifactError(f"{name} has {count} bytes, but its manifest lists {size}")
    if digest.hexdigest() != sha256:
        raise UnsafeArtifactError(
            f"{name} is damaged: sha256 {digest.hexdigest()[:12]}..., but its manifest lists {sha256[:12]}..."
        )
    with folder.filesystem.open_input_file(folder.file_path(name)) as stream:
        check_content(name, stream, size)


@dataclass(frozen=True)
class GarbageItem:
    """A folder below storage.root that nothing refers to.

    Attributes:
        why: what it is, and why nothing refers to it.
    """

    uri: str
    bytes: int
    why: str
    folder: Folder


def find_garbage(root: Folder, versions: list[Version], *, older_than: timedelta) -> list[GarbageItem]:
    """Return artifacts, unfinished ones included, that no registered version, ancestor or active run refers to.

    Args:
        versions: all registered versions, of any storage root.
        older_than: minimum age; a younger artifact may be about to be registered.
    """
    artifacts, runs = root.child("artifacts"), root.child("runs")
    active_runs = set(runs.list_folders())
    referenced = {v.artifact_id for v in versions} | active_runs | set(_iter_run_parents(runs, active_runs))
    referenced |= {parent for version in versions for parent in version.parents.values()}
    manifests = {name: _try_read_manifest(artifact_folder(root, name)) for name in artifacts.list_folders()}
    queue = list(referenced)
    while queue:  # ancestors, registered or not
        parents = (manifests.get(queue.pop()) or {}).get("parents", {}).values()
        queue += [parent for parent in parents if parent not in referenced]
        referenced |= set(parents)
    cutoff = datetime.now(UTC) - older_than
    items = []
    for name, manifest in manifests.items():
        folder = artifact_folder(root, name)
        if name not in referenced and _newest_mtime(folder) < cutoff:
            why = f"a {manifest['kind']} that is not registered" if manifest else "an unfinished artifact"
            items.append(GarbageItem(folder.uri, _total_bytes(folder), why, folder))
    return items


def _iter_run_parents(runs: Folder, active_runs: set[str]) -> Iterator[str]:
    for name in active_runs:
        if runs.child(name).exists(RUN_FILE):
            for parent in json.loads(read_bytes(runs.child(name), RUN_FILE))["parents"].values():
                yield parent.split(FORK_SEPARATOR)[0]


def _try_read_manifest(folder: Folder) -> dict[str, Any] | None:
    if not folder.exists():
        return None
    try:
        return read_artifact(folder).manifest
    except UserError:  # damaged: kept if something refers to it, so that verify reports it
        return {"kind": "damaged artifact", "parents": {}}


def _newest_mtime(folder: Folder) -> datetime:
    mtimes = [info.mtime for info in folder.list_files(recursive=True) if info.mtime]
    return max(mtimes, default=datetime.min.replace(tzinfo=UTC))


def _total_bytes(folder: Folder) -> int:
    return sum(info.size or 0 for info in folder.list_files(recursive=True))
