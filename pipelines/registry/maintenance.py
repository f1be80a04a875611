"""Maintenance: `verify_version` re-reads a stored version (garbage.py removes what nothing refers to)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from pipelines.registry.catalog import Version
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.folder import MANIFEST, Folder
from presto_core.artifacts.manifest import read_artifact
from presto_core.artifacts.manifest_schema import check_artifact, content_hash, list_former_pages
from presto_core.artifacts.resumable_read import read_blocks
from presto_core.artifacts.validate import UnsafeArtifactError, check_content
from presto_core.errors import UserError


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
