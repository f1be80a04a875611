"""An artifact in a folder of this machine: whether it is exactly what its manifest says, and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from presto_core.artifacts.folder import MANIFEST
from presto_core.artifacts.manifest_schema import FileEntry, check_artifact
from presto_core.artifacts.store import StoreError
from presto_core.artifacts.validate import UnsafeArtifactError, check_content

MANIFEST_LIMIT = 512 * 2**20


def iter_regular_files(folder: Path) -> Iterator[str]:
    """Names of the files below a folder.

    Raises:
        UnsafeArtifactError: there is a link, a device or a socket among them.
    """
    for parent, folders, files in os.walk(folder, followlinks=False):
        for name in (*folders, *files):
            path = Path(parent) / name
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                raise UnsafeArtifactError(f"{path} is a symbolic link; an artifact holds files alone")
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise UnsafeArtifactError(f"{path} is a device, a pipe or a socket; an artifact holds files alone")
            if stat.S_ISREG(mode):
                yield path.relative_to(folder).as_posix()


def read_local_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a pulled artifact's folder.

    Raises:
        StoreError: there is none, or it is damaged.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MANIFEST_LIMIT:
            raise UnsafeArtifactError(f"{path} is larger than {MANIFEST_LIMIT} bytes")
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StoreError(
            f"{path} does not exist; name the folder of an artifact, such as one that was pulled"
        ) from None
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: {str(error)[:200]}") from None
    if not isinstance(manifest, dict):
        raise StoreError(f"{path} is no manifest")
    return manifest


def check_artifact_folder(folder: Path) -> tuple[dict[str, Any], dict[str, FileEntry]]:
    """The manifest and files of an artifact's folder: all that it lists, nothing else, each with its hash and kind.

    Raises:
        UnsafeArtifactError: something is not as the manifest says, or must not be in an artifact.
    """
    present = set(iter_regular_files(folder))
    manifest = read_local_manifest(folder)
    files = check_artifact(manifest)
    if missing := sorted(files.keys() - present):
        raise UnsafeArtifactError(f"{folder} lacks {', '.join(missing[:5])}, which its manifest lists")
    if foreign := sorted(present - files.keys() - {MANIFEST}):
        raise UnsafeArtifactError(f"{folder} holds {', '.join(foreign[:5])}, which its manifest does not list")
    for name, entry in files.items():
        with (folder / name).open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size != entry.bytes:
                raise UnsafeArtifactError(f"{name} has {size} bytes where its manifest says {entry.bytes}")
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if digest != entry.sha256:
                raise UnsafeArtifactError(
                    f"{name} has sha256 {digest[:12]}... where its manifest says {entry.sha256[:12]}..."
                )
            check_content(name, stream, size)
    return manifest, files
