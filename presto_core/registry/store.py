"""Where artifacts and checkpoints are kept: folders of hashed files whose manifest is written last.

A folder without a manifest does not exist for readers, so a half-written one is never trusted. Works on any pyarrow
file system: a local disk or an S3 bucket, whose passing failures are waited out (retry.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from blake3 import blake3
from pyarrow import fs as pafs

from presto_core.registry.checksum import Checksum
from presto_core.registry.quick import Quick, found_quickly, read_quickly, written_quickly
from presto_core.registry.reading import blocks
from presto_core.registry.retry import DamagedError as DamagedError
from presto_core.registry.retry import Result, persist
from presto_core.registry.retry import StoreError as StoreError
from presto_core.registry.retry import reason as reason

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Folder:
    """A place in a file system.

    Attributes:
        opened: pyarrow file system, or what gives the current one where its credentials change during a run.
        path: path inside it, without scheme.
        uri: how a user would name it.
        quick: gives what reads, writes and looks for a whole file in one request, sooner than `opened` does.
    """

    opened: pafs.FileSystem | Callable[[], pafs.FileSystem]
    path: str
    uri: str
    quick: Callable[[], Quick] | None = None

    @property
    def filesystem(self) -> pafs.FileSystem:
        """Not to be kept for long: ask again for every use."""
        return self.opened() if callable(self.opened) else self.opened

    def child(self, name: str) -> Folder:
        return Folder(self.opened, self.file(name), f"{self.uri.rstrip('/')}/{name}", self.quick)

    def file(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    def exists(self, name: str = MANIFEST) -> bool:
        if (found := found_quickly(self.quick, self.file(name))) is not None:
            return found
        info = self.persist(lambda: self.filesystem.get_file_info(self.file(name)), f"look for {self.uri}/{name}")
        return bool(info.type == pafs.FileType.File)

    def folders(self) -> list[str]:
        """Names of the folders inside; none where nothing was written yet."""
        found = self._list(recursive=False, allow_not_found=True)
        return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)

    def files(self, *, recursive: bool = False, missing_ok: bool = False) -> list[pafs.FileInfo]:
        """What is known of the files inside, by path; none of a missing folder where that is allowed.

        Raises:
            StoreError: there is no such folder, or it cannot be listed.
        """
        found = self._list(recursive=recursive, allow_not_found=missing_ok)
        return sorted((info for info in found if info.type == pafs.FileType.File), key=lambda info: info.path)

    def delete(self) -> None:
        """Remove the folder with all that is in it, if it is there."""

        def remove() -> None:
            if self.filesystem.get_file_info(self.path).type != pafs.FileType.NotFound:
                with suppress(FileNotFoundError):  # someone else was quicker, or a store still lists what it deleted
                    self.filesystem.delete_dir(self.path)

        self.persist(remove, f"delete {self.uri}")

    def delete_file(self, name: str) -> None:
        """Remove one file, if it is there."""

        def remove() -> None:
            if self.filesystem.get_file_info(self.file(name)).type == pafs.FileType.File:
                with suppress(FileNotFoundError):  # someone else was quicker
                    self.filesystem.delete_file(self.file(name))

        self.persist(remove, f"delete {self.uri}/{name}")

    def persist(self, action: Callable[[], Result], doing: str) -> Result:
        """See `retry.persist`."""
        return persist(action, doing=doing, remote=self.remote)

    @property
    def remote(self) -> bool:
        return not isinstance(self.opened, pafs.LocalFileSystem)

    def _list(self, *, recursive: bool, allow_not_found: bool) -> list[pafs.FileInfo]:
        selector = pafs.FileSelector(self.path, recursive=recursive, allow_not_found=allow_not_found)

        def ask() -> list[pafs.FileInfo]:
            try:
                return list(self.filesystem.get_file_info(selector))
            except FileNotFoundError:
                raise StoreError(f"{self.uri} does not exist; name a folder that does") from None
            except NotADirectoryError:
                raise StoreError(f"{self.uri} is not a folder; name one") from None

        return self.persist(ask, f"list {self.uri}")


def read_bytes(folder: Folder, name: str) -> bytes:
    """A file's whole content.

    Raises:
        StoreError: it does not exist, or cannot be read.
    """
    return b"".join(blocks(folder, name))


def copy_out(folder: Folder, name: str, sink: BinaryIO) -> str:
    """Copy a file of any size into `sink`, going on after a failure from the byte it has; returns its BLAKE3 hash.

    Raises:
        StoreError: it does not exist or cannot be read, or the sink cannot take it.
    """
    digest = blake3()
    for block in blocks(folder, name):
        digest.update(block)
        try:
            sink.write(block)
        except OSError as error:
            raise StoreError(f"cannot keep a copy of {folder.uri}/{name}: {reason(error)}") from error
    return str(digest.hexdigest())


def write_bytes(folder: Folder, name: str, content: bytes) -> None:
    """Write one file, whole or not at all.

    Raises:
        StoreError: the disk is full, or the place cannot be written.
    """
    target = folder.file(name)

    def put() -> None:
        filesystem = folder.filesystem
        temporary = f"{target}.partial" if not folder.remote else target  # an S3 object appears only once complete
        if temporary != target:
            filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        try:
            with filesystem.open_output_stream(temporary) as stream:
                stream.write(content)
        except OSError:
            if temporary != target:  # half a file would only fill a full disk
                with suppress(OSError):
                    filesystem.delete_file(temporary)
            raise
        if temporary != target:
            filesystem.move(temporary, target)

    if not written_quickly(folder.quick, target, content):
        folder.persist(put, f"write {folder.uri}/{name} ({len(content)} bytes)")


def write_listed(folder: Folder, name: str, content: bytes) -> dict[str, Any]:
    """Write one file, see `write_bytes`; returns its manifest entry {sha256, bytes}."""
    write_bytes(folder, name, content)
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def commit(folder: Folder, manifest: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
    """Write files, then the manifest that makes them exist; returns the manifest as written."""
    entries = {name: write_listed(folder, name, content) for name, content in files.items()}
    known = manifest.get("files", {})
    full = {"schema_version": SCHEMA_VERSION, **manifest, "files": {**known, **entries}}
    write_bytes(folder, MANIFEST, json.dumps(full, indent=2, sort_keys=True).encode())
    return full


def read_manifest(folder: Folder) -> dict[str, Any]:
    """The manifest of a committed folder.

    Raises:
        StoreError: there is none, it is damaged or of another schema version, or it lists files outside the folder.
    """
    try:
        manifest = json.loads(read_bytes(folder, MANIFEST))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedError(f"{folder.uri}/{MANIFEST} is damaged ({error}); write it again from its stage") from None
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
        raise StoreError(
            f"{folder.uri}/{MANIFEST} is not of schema version {SCHEMA_VERSION}; this release cannot read it"
        )
    for name in manifest.get("files", {}):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise StoreError(f"{folder.uri}/{MANIFEST} lists {name!r}, which is outside its folder; do not use it")
    return manifest


def read_file(folder: Folder, name: str, manifest: dict[str, Any]) -> bytes:
    """A file's content, checked against the manifest's hash.

    Raises:
        StoreError: the manifest does not list it, it is missing, or its bytes changed.
    """
    entry = manifest["files"].get(name)
    if entry is None:
        raise StoreError(f"{folder.uri} has no file {name!r}; it has {', '.join(sorted(manifest['files']))}")
    return read_checked(folder, name, Checksum("sha256", entry["sha256"]))


def read_checked(folder: Folder, name: str, wanted: Checksum) -> bytes:
    """A file's content, checked against a hash that a manifest gives.

    Raises:
        StoreError: it is missing, or its bytes changed.
    """
    # the hash tells whether the quick reading went well; where not, reading with care tells why; and bytes that change
    # on the way are none that were written
    quickly = partial(read_quickly, folder.quick, folder.file(name))
    carefully = partial(read_bytes, folder, name)
    for read in (quickly, carefully, carefully) if folder.remote else (carefully,):
        content = read()
        found = wanted.found(content)
        if found == wanted.digest:
            return content
    raise DamagedError(
        f"{folder.uri}/{name} is damaged: {wanted.algorithm} {found[:12]}... where the manifest says "
        f"{wanted.digest[:12]}...; restore it, or delete the folder and run its stage again"
    )
