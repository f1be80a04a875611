"""Where artifacts and checkpoints are kept: folders of hashed files whose manifest is written last.

A folder without a manifest does not exist for readers, so a half-written one is never trusted. Works on any pyarrow
file system: a local disk or an S3 bucket.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pyarrow import fs as pafs

from presto_core.config.errors import UserError

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1


class StoreError(UserError):
    """Something stored is missing, damaged, or cannot be written; the message names it and the mend."""


@dataclass(frozen=True)
class Folder:
    """A place in a file system.

    Attributes:
        filesystem: pyarrow file system.
        path: path inside it, without scheme.
        uri: how a user would name it.
    """

    filesystem: pafs.FileSystem
    path: str
    uri: str

    def child(self, name: str) -> Folder:
        return Folder(self.filesystem, f"{self.path.rstrip('/')}/{name}", f"{self.uri.rstrip('/')}/{name}")

    def file(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    def exists(self, name: str = MANIFEST) -> bool:
        info = self.filesystem.get_file_info(self.file(name))
        return bool(info.type == pafs.FileType.File)

    def folders(self) -> list[str]:
        """Names of the folders inside; none where nothing was written yet."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)


def write_bytes(folder: Folder, name: str, content: bytes) -> dict[str, Any]:
    """Write one file, whole or not at all; return its manifest entry {sha256, bytes}.

    Raises:
        StoreError: the disk is full, or the place cannot be written.
    """
    target = folder.file(name)
    local = isinstance(folder.filesystem, pafs.LocalFileSystem)
    temporary = f"{target}.partial" if local else target  # an S3 object appears only once complete
    try:
        if local:
            folder.filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        with folder.filesystem.open_output_stream(temporary) as stream:
            stream.write(content)
        if local:
            folder.filesystem.move(temporary, target)
    except OSError as error:
        raise StoreError(f"cannot write {folder.uri}/{name} ({len(content)} bytes): {reason(error)}") from error
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def commit(folder: Folder, manifest: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
    """Write files, then the manifest that makes them exist; returns the manifest as written."""
    entries = {name: write_bytes(folder, name, content) for name, content in files.items()}
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
        manifest = json.loads(_read(folder, MANIFEST))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{folder.uri}/{MANIFEST} is damaged ({error}); write it again from its stage") from None
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
    content = _read(folder, name)
    found = hashlib.sha256(content).hexdigest()
    if found != entry["sha256"]:
        raise StoreError(
            f"{folder.uri}/{name} is damaged: sha256 {found[:12]}... where the manifest says "
            f"{entry['sha256'][:12]}...; delete the folder and run its stage again"
        )
    return content


def reason(error: OSError) -> str:
    """A system error as one clause with its mend."""
    text = " ".join(str(error).split())
    lowered = text.lower()
    for sign, clause in _REASONS.items():
        if sign in lowered:
            return clause
    return text


_REASONS = {
    "no space left": "the disk is full; free some space and run the same command again",
    "disk quota exceeded": "the disk quota is used up; free some space and run the same command again",
    "read-only file system": "the file system is read-only; choose another storage.root",
    "permission denied": "permission denied; choose another storage.root or mend its permissions",
    "access_denied": "access denied; check that these credentials may write there",
    "nosuchbucket": "the bucket does not exist; create it first",
}


def _read(folder: Folder, name: str) -> bytes:
    try:
        with folder.filesystem.open_input_file(folder.file(name)) as stream:
            return bytes(stream.read())
    except FileNotFoundError:
        raise StoreError(f"{folder.uri}/{name} does not exist") from None
    except OSError as error:
        raise StoreError(f"cannot read {folder.uri}/{name}: {reason(error)}") from error
