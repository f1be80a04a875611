"""Parse and check artifact manifests: the listed files with their hashes, and one hash over the content."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from presto_core.artifacts.formats import parse_json
from presto_core.artifacts.validate import UnsafeArtifactError, check_names

FILE_BYTES_LIMIT = 64 * 2**30
TOTAL_BYTES_LIMIT = 16 * 2**40
MANIFEST_LIMIT = 512 * 2**20
_MAPPINGS = {"files", "parents", "dataset", "model", "export", "provenance", "made_with", "report", "gate"}
KINDS = ("dataset", "teacher", "layers", "generator", "report")
# time, versions and machines do not affect the content
_INCIDENTAL = ("created", "made_with", "schema_version", "provenance")
FORMER_PAGE = "index.html"
"""The page in a report of an early release: it is neither copied, nor opened, nor checked."""


@dataclass(frozen=True)
class FileEntry:
    """Hash and size of one file in a manifest."""

    sha256: str
    bytes: int


def parse_manifest(content: bytes, where: str) -> dict[str, Any]:
    """Return a manifest whose parts have the types that readers rely on; unknown parts are kept as they are.

    Args:
        where: its path or URI, for the message.

    Raises:
        UnsafeArtifactError: it is no JSON object, or one of its parts has another type.
    """
    try:
        if len(content) > MANIFEST_LIMIT:
            raise UnsafeArtifactError(f"it is larger than {MANIFEST_LIMIT} bytes")
        manifest = parse_json(content, "it")
        if not isinstance(manifest, dict):
            raise UnsafeArtifactError(f"it is not a mapping but a {type(manifest).__name__}")
        for name in ("id", "kind"):
            if not isinstance(manifest.get(name, ""), str):
                raise UnsafeArtifactError(f"its {name} is not a text")
        for name in _MAPPINGS & manifest.keys():
            _check_mapping(manifest[name] if name in ("files", "parents") else manifest[name] or {}, name)
        for name, entry in manifest.get("files", {}).items():
            _check_mapping(entry, f"entry {name[:80]!r}")
        if not all(isinstance(parent, str) for parent in manifest.get("parents", {}).values()):
            raise UnsafeArtifactError("its parents are not all ids")
        _list_shards(manifest)
    except UnsafeArtifactError as error:
        raise UnsafeArtifactError(f"{where} is damaged or no manifest: {error}; run its stage again") from None
    return manifest


def _list_shards(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    shards = _check_mapping(manifest.get("dataset") or {}, "dataset").get("shards", [])
    if not isinstance(shards, list) or not all(isinstance(shard, Mapping) for shard in shards):
        raise UnsafeArtifactError("the manifest's dataset.shards is not a list of mappings")
    return shards


def parse_files(manifest: Mapping[str, Any]) -> dict[str, FileEntry]:
    """Return every file of an artifact except the manifest itself, including shards of a dataset.

    The page of an old report is left out.

    Raises:
        UnsafeArtifactError: a name, hash or size is invalid, two entries name the same file, or the total is too large.
    """
    listed = _check_mapping(manifest.get("files", {}), "files")
    shards = _list_shards(manifest)
    former = list_former_pages(manifest)
    pairs: list[tuple[Any, Mapping[str, Any]]] = [(n, entry) for n, entry in listed.items() if n not in former]
    pairs += [(shard.get("file"), shard) for shard in shards]
    check_names([name for name, _ in pairs])
    entries = {str(name): _parse_entry(str(name), entry) for name, entry in pairs}
    total = sum(entry.bytes for entry in entries.values())
    if total > TOTAL_BYTES_LIMIT:
        raise UnsafeArtifactError(f"the manifest's files total {total} bytes, more than {TOTAL_BYTES_LIMIT}")
    return entries


def list_former_pages(manifest: Mapping[str, Any]) -> set[str]:
    """Return the names of listed files that may stay where they are, but are no files of an artifact any more."""
    return {FORMER_PAGE} & set(manifest.get("files", {})) if manifest.get("kind") == "report" else set()


def content_hash(manifest: Mapping[str, Any]) -> str:
    """Return the sha256 over the content of an artifact: kind, id, parents, model settings and file hashes.

    Creation time, package versions and the notes of an export on how its source was made are excluded: two identical
    builds are one version.
    """
    body = {key: value for key, value in manifest.items() if key not in _INCIDENTAL}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_artifact(manifest: Mapping[str, Any]) -> dict[str, FileEntry]:
    """Check the manifest of an artifact and return its files.

    Raises:
        UnsafeArtifactError: its kind, id, parents or files (see `parse_files`) are invalid.
    """
    check_identity(manifest)
    return parse_files(manifest)


def check_identity(manifest: Mapping[str, Any]) -> None:
    """Check kind, id and parents of an artifact: folders and queries are made from them. UnsafeArtifactError."""
    if manifest.get("kind") not in KINDS:
        raise UnsafeArtifactError(f"the manifest's kind {manifest.get('kind')!r} is not one of {', '.join(KINDS)}")
    if not _is_id(manifest.get("id")):
        raise UnsafeArtifactError(f"the manifest's id {str(manifest.get('id'))[:40]!r} is not 16 hexadecimal digits")
    for role, parent in _check_mapping(manifest.get("parents"), "parents").items():
        if not re.fullmatch(r"\w{1,40}", role) or not re.fullmatch(r"[0-9a-f]{16}(/step-\d+)?", str(parent)):
            raise UnsafeArtifactError(f"the manifest's parent {role[:40]!r}={str(parent)[:40]!r} is not an artifact id")


def _check_mapping(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise UnsafeArtifactError(f"the manifest's {name} is a {type(value).__name__}, not a mapping")
    return value


def _is_id(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16}", value) is not None


def _parse_entry(name: str, value: object) -> FileEntry:
    fields = _check_mapping(value, f"entry {name!r}")
    digest, size = fields.get("sha256"), fields.get("bytes")
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise UnsafeArtifactError(f"the manifest's sha256 of {name!r} is not 64 hexadecimal digits")
    if type(size) is not int or not 0 <= size <= FILE_BYTES_LIMIT:
        raise UnsafeArtifactError(
            f"the manifest's size of {name!r}, {size!r}, is not between 0 and {FILE_BYTES_LIMIT} bytes"
        )
    return FileEntry(digest, size)
