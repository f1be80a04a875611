"""The store of artifacts and checkpoints: folders of hashed files whose manifest is written last.

A folder without a manifest does not exist for readers, so a partially written one is never used. Works on any pyarrow
file system: a local disk or an S3 bucket, whose transient errors are retried (retry.py).
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from functools import partial
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from blake3 import blake3

from presto_core.artifacts.checksum import Checksum
from presto_core.artifacts.fast_path import try_read, try_write
from presto_core.artifacts.folder import MANIFEST, Folder
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


def write_bytes(folder: Folder, name: str, content: bytes) -> None:
    """Write one file atomically.

    Raises:
        StoreError: the disk is full, or the folder cannot be written.
    """
    target = folder.file_path(name)

    def put() -> None:
        folder.check_holder()  # before every attempt: one can be an outage later than the one before it
        filesystem = folder.filesystem
        temporary = f"{target}.partial" if not folder.is_remote else target  # an S3 object appears only once complete
        if temporary != target:
            filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        try:
            with filesystem.open_output_stream(temporary) as stream:
                stream.write(content)
        except OSError:
            if temporary != target:  # a partial file would keep a full disk full
                with suppress(OSError):
                    filesystem.delete_file(temporary)
            raise
        if temporary != target:
            folder.check_holder()
            filesystem.move(temporary, target)

    folder.check_holder()
    if not try_write(folder.fast_path, target, content):
        folder.with_retries(put, f"write {folder.uri}/{name} ({len(content)} bytes)")


def write_with_entry(folder: Folder, name: str, content: bytes) -> dict[str, Any]:
    """Write one file (see `write_bytes`) and return its manifest entry {sha256, bytes}."""
    write_bytes(folder, name, content)
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def commit(folder: Folder, manifest: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
    """Write files, then the manifest that makes the folder exist; return the manifest as written."""
    entries = {name: write_with_entry(folder, name, content) for name, content in files.items()}
    prior_entries = manifest.get("files", {})
    full = {"schema_version": SCHEMA_VERSION, **manifest, "files": {**prior_entries, **entries}}
    write_bytes(folder, MANIFEST, json.dumps(full, indent=2, sort_keys=True).encode())
    return full


def read_manifest(folder: Folder) -> dict[str, Any]:
    """Read the manifest of a committed folder.

    Raises:
        StoreError: it is missing, damaged or of another schema version, or it lists files outside the folder.
    """
    try:
        manifest = json.loads(read_bytes(folder, MANIFEST))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedError(f"{folder.uri}/{MANIFEST} is damaged ({error}); run its stage again") from None
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
        raise StoreError(
            f"{folder.uri}/{MANIFEST} does not have schema version {SCHEMA_VERSION}; read it with another release"
        )
    for name in manifest.get("files", {}):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise StoreError(f"{folder.uri}/{MANIFEST} lists {name!r}, a file outside its folder; do not use it")
    return manifest


def read_file(folder: Folder, name: str, manifest: dict[str, Any]) -> bytes:
    """Read a file and verify it against the manifest's hash.

    Raises:
        StoreError: the manifest does not list the file, it is missing, or its bytes differ.
    """
    entry = manifest["files"].get(name)
    if entry is None:
        raise StoreError(f"{folder.uri} has no file {name!r}; choose one of {', '.join(sorted(manifest['files']))}")
    return read_verified(folder, name, Checksum("sha256", entry["sha256"]))


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
