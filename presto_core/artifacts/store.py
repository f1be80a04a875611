"""The store of artifacts and checkpoints: folders of hashed files whose manifest is written last.

A folder without a manifest does not exist for readers, so a partially written one is never used. Works on any pyarrow
file system: a local disk or an S3 bucket, whose transient errors are retried (retry.py).
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from blake3 import blake3

from presto_core.artifacts.checksum import Checksum
from presto_core.artifacts.durable import LEFTOVER_S, delete_leftovers, make_folders, replace_file, sync_folders_between
from presto_core.artifacts.fast_path import try_read, try_write
from presto_core.artifacts.folder import MANIFEST, Folder
from presto_core.artifacts.formats import UnsafeArtifactError
from presto_core.artifacts.manifest_schema import parse_manifest
from presto_core.artifacts.resumable_read import read_blocks
from presto_core.artifacts.retry import DamagedError as DamagedError
from presto_core.artifacts.retry import StoreError as StoreError
from presto_core.artifacts.retry import explain as explain

SCHEMA_VERSION = 1


def read_bytes(folder: Folder, name: str) -> bytes:
    """Read a whole file without verifying it.

    Raises:
        StoreError: the file does not exist or cannot be read.
    """
    return b"".join(read_blocks(folder, name))


def download(folder: Folder, name: str, sink: BinaryIO) -> str:
    """Copy a file of any size into `sink`, resuming at the byte reached after an error; return its BLAKE3 hash.

    Raises:
        StoreError: the file does not exist or cannot be read, or the sink cannot be written.
    """
    digest = blake3()
    for block in read_blocks(folder, name):
        digest.update(block)
        try:
            sink.write(block)
        except OSError as error:
            raise StoreError(f"cannot store a copy of {folder.uri}/{name}: {explain(error)}") from error
    return str(digest.hexdigest())


def write_bytes(folder: Folder, name: str, content: bytes, *, sync_name: bool = True) -> None:
    """Write one file atomically and durably: after a crash it is whole, or not there.

    Args:
        sync_name: wait until its name is on a local disk too; if not, the caller must sync its folder.

    Raises:
        StoreError: the disk is full, or the folder cannot be written.
    """
    target = folder.file_path(name)

    def put() -> None:
        folder.check_holder()  # before every attempt: one can be an outage later than the one before it
        if folder.is_remote:  # an object of S3 appears only once it is complete
            with folder.filesystem.open_output_stream(target) as stream:
                stream.write(content)
        else:
            path = Path(target)
            make_folders(path.parent)
            replace_file(path, content, sync_name=sync_name, check=folder.check_holder)

    folder.check_holder()
    if not try_write(folder.fast_path, target, content):
        folder.with_retries(put, f"write {folder.uri}/{name} ({len(content)} bytes)")


def write_with_entry(folder: Folder, name: str, content: bytes, *, sync_name: bool = True) -> dict[str, Any]:
    """Write one file (see `write_bytes`) and return its manifest entry {sha256, bytes}."""
    write_bytes(folder, name, content, sync_name=sync_name)
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def commit(folder: Folder, manifest: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
    """Write files, then the manifest that makes the folder exist; return the manifest as written."""
    entries = {name: write_with_entry(folder, name, content, sync_name=False) for name, content in files.items()}
    if not folder.is_remote:  # no name of theirs may be lost that the manifest lists
        root = Path(folder.path)
        make_folders(root)
        sync_folders_between((root / name for name in files), root)
        _delete_leftovers(folder, [*files, MANIFEST])
    prior_entries = manifest.get("files", {})
    full = {"schema_version": SCHEMA_VERSION, **manifest, "files": {**prior_entries, **entries}}
    write_bytes(folder, MANIFEST, json.dumps(full, indent=2, sort_keys=True).encode())
    return full


def _delete_leftovers(folder: Folder, names: list[str]) -> None:
    """Delete what an interrupted commit of the same files left on a local disk, before they are committed."""
    paths = [Path(folder.file_path(name)) for name in names]
    for parent in {path.parent for path in paths}:
        delete_leftovers(
            parent,
            names=[path.name for path in paths if path.parent == parent],
            older_than_s=0 if folder.has_holder else LEFTOVER_S,
        )


def read_manifest(folder: Folder) -> dict[str, Any]:
    """Read the manifest of a committed folder.

    Raises:
        StoreError: it is missing, damaged or of another schema version, or it lists files outside the folder.
    """
    manifest = parse_manifest(read_bytes(folder, MANIFEST), f"{folder.uri}/{MANIFEST}")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise StoreError(
            f"{folder.uri}/{MANIFEST} does not have schema version {SCHEMA_VERSION}; read it with another release"
        )
    shards = (manifest.get("dataset") or {}).get("shards", [])
    for name in (*manifest.get("files", {}), *(str(shard.get("file")) for shard in shards)):
        if name.startswith("/") or ".." in name.split("/"):  # a path object takes longer than reading the entry
            raise UnsafeArtifactError(
                f"{folder.uri}/{MANIFEST} lists {name!r}, a file outside its folder; do not use it"
            )
    return manifest


def read_file(folder: Folder, name: str, manifest: dict[str, Any]) -> bytes:
    """Read a file and verify it against the manifest's hash.

    Raises:
        StoreError: the manifest does not list the file, it is missing, or its bytes differ.
    """
    entry = manifest.get("files", {}).get(name)
    if entry is None:
        raise StoreError(
            f"{folder.uri} has no file {name!r}; choose one of {', '.join(sorted(manifest.get('files', {})))}"
        )
    return read_verified(folder, name, Checksum("sha256", entry.get("sha256")))


def read_verified(folder: Folder, name: str, expected: Checksum) -> bytes:
    """Read a file and verify it against an expected hash.

    Raises:
        StoreError: the file is missing, or its bytes differ.
    """
    # a failed fast read fails the hash and is repeated reliably, which reports the cause; a second reliable read
    # distinguishes damage in transit from damage in the store
    fast_read = partial(try_read, folder.fast_path, folder.file_path(name))
    reliable_read = partial(read_bytes, folder, name)
    for read in (fast_read, reliable_read, reliable_read) if folder.is_remote else (reliable_read,):
        content = read()
        digest = expected.compute(content)
        if digest == expected.digest:
            return content
    raise DamagedError(
        f"{folder.uri}/{name} is damaged: {expected.algorithm} is {digest[:12]}..., the manifest has "
        f"{expected.digest[:12]}...; restore it, or delete the folder and run its stage again"
    )
