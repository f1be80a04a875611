"""A node-local cache of artifacts: an artifact on S3 is copied once per node, by the first process that needs it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from filelock import FileLock

from pipelines.console import console
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.checksum import Checksum
from presto_core.artifacts.folder import MANIFEST, Folder
from presto_core.artifacts.manifest_schema import FileEntry, check_artifact
from presto_core.artifacts.store import DamagedError, StoreError, read_bytes, read_manifest, read_verified, write_bytes

CACHE_VAR = "PRESTO_CACHE"  # path of the cache folder
FREE_SPACE_FACTOR = 1.2  # times the artifact's size must be free


def cache_on_node(uri: str) -> str:
    """Return the path of a verified copy of an artifact on this node; a local artifact's own URI.

    Concurrent calls make one copy: the first process copies, the others wait. An interrupted copy is repeated. The
    artifact's own URI is returned if there is no space for a copy, or if the artifact is damaged.

    Raises:
        StoreError: the artifact is missing, or the copy cannot be written.
        UnsafeArtifactError: its manifest is not that of an artifact.
    """
    source = open_folder(uri)
    if not source.is_remote:
        return uri
    manifest = read_manifest(source)
    files = check_artifact(manifest)  # rejects names that lead out of the cache folder
    path = cache_folder() / str(manifest["id"])
    with FileLock(f"{path}.lock"):
        target = open_folder(str(path))
        if target.exists() and read_manifest(target) == manifest:
            return str(path)
        size = sum(entry.bytes for entry in files.values())
        if shutil.disk_usage(path.parent).free < FREE_SPACE_FACTOR * size:
            console.print(f"{uri} is not cached: {path.parent} has no space for its {size >> 20} MiB")
            return uri
        target.delete()
        try:
            _copy(source, target, files)
        except DamagedError:  # its reader reports the damage, or works without the damaged part
            return uri
    return str(path)


def cache_folder() -> Path:
    """Return this node's cache folder, accessible to this user only: $PRESTO_CACHE, or ~/.cache/presto.

    The default is not a temporary folder, which can be in memory. Any copy can be deleted at any time.

    Raises:
        StoreError: the folder belongs to another user, or cannot be created.
    """
    folder = Path(os.path.expanduser(os.environ.get(CACHE_VAR) or "~/.cache/presto"))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.stat().st_uid
    except OSError as error:
        raise StoreError(
            f"cache folder {folder} cannot be used: {error.strerror}; set {CACHE_VAR} to another folder"
        ) from error
    if owner != os.getuid():
        raise StoreError(f"cache folder {folder} belongs to another user; set {CACHE_VAR} to a folder of your own")
    return folder


def _copy(source: Folder, target: Folder, files: dict[str, FileEntry]) -> None:
    """Copy file by file, each verified by its hash, and the manifest last, so that a partial copy does not count."""
    for name, entry in files.items():
        write_bytes(target, name, read_verified(source, name, Checksum("sha256", entry.sha256)))
    write_bytes(target, MANIFEST, read_bytes(source, MANIFEST))
