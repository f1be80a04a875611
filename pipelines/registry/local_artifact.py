"""Checks that a local folder holds exactly the artifact that its manifest describes."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from presto_core.artifacts.folder import MANIFEST
from presto_core.artifacts.manifest_schema import (
    MANIFEST_LIMIT,
    FileEntry,
    check_artifact,
    list_former_pages,
    parse_manifest,
)
from presto_core.artifacts.store import StoreError
from presto_core.artifacts.validate import UnsafeArtifactError, check_content


def iter_regular_files(folder: Path) -> Iterator[str]:
    """Yield the relative names of the files below a folder.

    Raises:
        UnsafeArtifactError: the folder holds a link, a device, a pipe or a socket.
    """
    for parent, folders, files in os.walk(folder, followlinks=False):
        for name in (*folders, *files):
            path = Path(parent) / name
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                raise UnsafeArtifactError(f"{path} is a symbolic link; remove it from the artifact")
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise UnsafeArtifactError(f"{path} is a device, a pipe or a socket; remove it from the artifact")
            if stat.S_ISREG(mode):
                yield path.relative_to(folder).as_posix()


def read_local_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of an artifact's local folder.

    Raises:
        StoreError: the manifest is missing or damaged.
    """
    path = folder / MANIFEST
    try:
        with path.open("rb") as stream:
            content = stream.read(MANIFEST_LIMIT + 1)
    except FileNotFoundError:
        raise StoreError(
            f"{path} does not exist; name the folder of an artifact, such as one made by presto registry pull"
        ) from None
    return parse_manifest(content, str(path))


def check_artifact_folder(folder: Path) -> tuple[dict[str, Any], dict[str, FileEntry]]:
    """Return the manifest and files of an artifact's folder, after checking every file's name, size, hash and type.

    Raises:
        UnsafeArtifactError: a file is missing, unlisted, different from the manifest, or of a forbidden type.
    """
    present = set(iter_regular_files(folder))
    manifest = read_local_manifest(folder)
    files = check_artifact(manifest)
    if missing := sorted(files.keys() - present):
        raise UnsafeArtifactError(f"{folder} lacks {', '.join(missing[:5])}, which its manifest lists")
    if foreign := sorted(present - files.keys() - {MANIFEST} - list_former_pages(manifest)):
        raise UnsafeArtifactError(f"{folder} holds {', '.join(foreign[:5])}, which its manifest does not list")
    for name, entry in files.items():
        with (folder / name).open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != entry.bytes:
                raise UnsafeArtifactError(f"{name} has {size} bytes, but its manifest lists {entry.bytes}")
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if digest != entry.sha256:
                raise UnsafeArtifactError(
                    f"{name} has sha256 {digest[:12]}..., but its manifest lists {entry.sha256[:12]}..."
                )
            check_content(name, stream, size)
    return manifest, files


def is_whole(path: Path, entry: FileEntry) -> bool:
    """Whether a file is the one that a manifest lists."""
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            return size == entry.bytes and hashlib.file_digest(stream, "sha256").hexdigest() == entry.sha256
    except OSError:
        return False
