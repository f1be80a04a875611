"""Artifacts: committed folders whose manifest records how they are made, from which parents, and their file hashes."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from presto_core.artifacts.folder import Folder
from presto_core.artifacts.manifest_schema import content_hash
from presto_core.artifacts.store import commit, read_manifest
from presto_core.artifacts.validate import UnsafeArtifactError, check_no_page

CONFIG = "config.yaml"
_PACKAGES = ("presto-distill", "torch", "ray", "mlflow", "pyarrow", "numpy")


@dataclass(frozen=True)
class Artifact:
    """A committed artifact.

    Attributes:
        id: hash over configuration and parents; the same inputs give the same id.
        kind: dataset, teacher, layers, generator or report.
        uri: its folder.
        manifest: content of its manifest.json.
    """

    id: str
    kind: str
    uri: str
    manifest: dict[str, Any]


def artifact_folder(root: Folder, artifact_id: str) -> Folder:
    """Return the folder of the artifact with this id, whether or not it exists."""
    return root.child("artifacts").child(artifact_id)


def run_folder(root: Folder, run_id: str) -> Folder:
    """Return the folder for a run's checkpoints and partial results."""
    return root.child("runs").child(run_id)


def commit_artifact(
    folder: Folder,
    *,
    kind: str,
    artifact_id: str,
    config_yaml: str,
    parents: dict[str, str],
    files: dict[str, bytes],
    details: dict[str, Any],
    hardware: Mapping[str, str | int] = MappingProxyType({}),
) -> Artifact:
    """Write an artifact's files and, last, its manifest.

    Args:
        parents: input role -> id of the artifact it is made from.
        details: further manifest keys, such as `model` or `dataset`.
        hardware: what it was computed on, kept beside the versions of packages.

    Raises:
        StoreError: it cannot be written.
        UnsafeArtifactError: a file is a page, which is rendered from an artifact and not kept in it.
    """
    check_no_page(files)
    manifest = {
        "kind": kind,
        "id": artifact_id,
        "parents": parents,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "made_with": {**collect_provenance(), **hardware},
        **details,
    }
    written = commit(folder, manifest, {CONFIG: config_yaml.encode(), **files})
    return Artifact(artifact_id, kind, folder.uri, written)


def read_artifact(folder: Folder, *, content: str = "") -> Artifact:
    """Read the artifact committed in a folder.

    Args:
        content: hash that its content must have, as the registry keeps it; empty if unknown.

    Raises:
        StoreError: the folder has no artifact, or it is damaged.
        UnsafeArtifactError: its content is another.
    """
    manifest = read_manifest(folder)
    if content and (found := content_hash(manifest)) != content:
        raise UnsafeArtifactError(
            f"{folder.uri} has content {found[:12]}, but {content[:12]} was registered: it has changed since; "
            "restore it from a copy, or run its stage again with another storage.root"
        )
    return Artifact(str(manifest.get("id", "")), str(manifest.get("kind", "")), folder.uri, manifest)


def collect_provenance() -> dict[str, str | None]:
    """Return the versions of Python and key packages, and the git commit of the source tree."""
    versions: dict[str, str | None] = {"python": platform.python_version(), "git_commit": read_git_commit()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def read_git_commit() -> str | None:
    """Return the git commit of the source tree; None if it is not a repository."""
    source = Path(__file__).parent
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=source, capture_output=True, text=True, check=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
