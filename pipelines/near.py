"""Artifacts close to where they are read: one that lies on S3 is copied once a node, whoever asks for it first."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipelines.progress import console
from pipelines.storage import open_folder
from presto_core.registry.store import (
    MANIFEST,
    DamagedError,
    Folder,
    StoreError,
    read_bytes,
    read_hashed,
    read_manifest,
    write_bytes,
)

CACHE = "PRESTO_CACHE"  # names the folder of copies
SPARE = 1.2  # of an artifact's size must be free


def near_copy(uri: str) -> str:
    """A copy of an artifact on this node, whose bytes were checked; itself where it is in a local folder already.

    Several processes may ask at once: one copies, the others wait for it. A copy that was interrupted is made again.

    Raises:
        StoreError: the artifact is missing, or the copy cannot be written.
    """
    source = open_folder(uri)
    if not source.remote:
        return uri
    manifest = read_manifest(source)
    hashes = _hashes(manifest)
    place = cache_folder() / str(manifest["id"])
    with FileLock(f"{place}.lock"):
        target = open_folder(str(place))
        if target.exists() and read_manifest(target) == manifest:
            return str(place)
        size = sum(entry["bytes"] for entry in hashes.values())
        if shutil.disk_usage(place.parent).free < SPARE * size:
            console.print(f"{uri} is read where it is: {place.parent} has no room for its {size >> 20} MiB")
            return uri
        target.delete()
        try:
            _copy(source, target, hashes)
        except DamagedError:  # what reads it says so, or does without the damaged part
            return uri
    return str(place)


def cache_folder() -> Path:
    """Where copies are kept, open to this user alone: $PRESTO_CACHE, or a folder of the system's temporary ones.

    Raises:
        StoreError: it belongs to someone else, or cannot be made.
    """
    default = Path(tempfile.gettempdir()) / f"presto-cache-{os.getuid()}"
    folder = Path(os.environ.get(CACHE) or default)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.stat().st_uid
    except OSError as error:
        raise StoreError(f"copies cannot be kept in {folder}: {error.strerror}; set {CACHE}") from error
    if owner != os.getuid():
        raise StoreError(f"{folder} belongs to another user; set {CACHE} to a folder of your own")
    return folder


def _hashes(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Files of an artifact and, of a data set, its shards: name -> {sha256, bytes}."""
    shards = {shard["file"]: shard for shard in manifest.get("dataset", {}).get("shards", ())}
    return {**manifest["files"], **shards}


def _copy(source: Folder, target: Folder, hashes: dict[str, dict[str, Any]]) -> None:
    """File by file, each checked against its hash; the manifest last, so that half a copy does not exist."""
    for name, entry in hashes.items():
        write_bytes(target, name, read_hashed(source, name, entry["sha256"]))
    write_bytes(target, MANIFEST, read_bytes(source, MANIFEST))
