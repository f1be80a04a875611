"""Artifacts close to where they are read: one that lies on S3 is copied once a node, whoever asks for it first."""

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
from presto_core.artifacts.store import (
    DamagedError,
    StoreError,
    read_bytes,
    read_manifest,
    read_verified,
    write_bytes,
)

CACHE_VAR = "PRESTO_CACHE"  # names the folder of copies
FREE_SPACE_FACTOR = 1.2  # of an artifact's size must be free


def cache_on_node(uri: str) -> str:
    """A copy of an artifact on this node, whose bytes were checked; itself where it is in a local folder already.

    Several processes may ask at once: one copies, the others wait for it. A copy that was interrupted is made again.

    Raises:
        StoreError: the artifact is missing, or the copy cannot be written.
        UnsafeArtifactError: its manifest is none of an artifact.
    """
    source = open_folder(uri)
    if not source.is_remote:
        return uri
    manifest = read_manifest(source)
    files = check_artifact(manifest)  # names that lead out of the folder of copies are refused
    path = cache_folder() / str(manifest["id"])
    with FileLock(f"{path}.lock"):
        target = open_folder(str(path))
        if target.exists() and read_manifest(target) == manifest:
            return str(path)
        size = sum(entry.bytes for entry in files.values())
        if shutil.disk_usage(path.parent).free < FREE_SPACE_FACTOR * size:
            console.print(f"{uri} is read where it is: {path.parent} has no room for its {size >> 20} MiB")
            return uri
        target.delete()
        try:
            _copy(source, target, files)
        except DamagedError:  # what reads it says so, or does without the damaged part
            return uri
    return str(path)


def cache_folder() -> Path:
    """Where this node keeps copies, open to this user alone: $PRESTO_CACHE, or ~/.cache/presto.

    Not a temporary folder by default: those may be memory. Any copy may be deleted at any time.

    Raises:
        StoreError: it belongs to someone else, or cannot be made.
    """
    folder = Path(os.path.expanduser(os.environ.get(CACHE_VAR) or "~/.cache/presto"))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.stat().st_uid
    except OSError as error:
        raise StoreError(f"copies cannot be kept in {folder}: {error.strerror}; set {CACHE_VAR}") from error
    if owner != os.getuid():
        raise StoreError(f"{folder} belongs to another user; set {CACHE_VAR} to a folder of your own")
    return folder


def _copy(source: Folder, target: Folder, files: dict[str, FileEntry]) -> None:
    """File by file, each checked against its hash; the manifest last, so that half a copy does not exist."""
    for name, entry in files.items():
        write_bytes(target, name, read_verified(source, name, Checksum("sha256", entry.sha256)))
    write_bytes(target, MANIFEST, read_bytes(source, MANIFEST))
