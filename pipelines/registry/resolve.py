"""Resolves a user's reference to an artifact: a registry name, an id or a URI."""

from __future__ import annotations

from typing import Any

from pipelines.registry.catalog import Catalog
from pipelines.registry.names import parse_reference
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.manifest import Artifact, artifact_folder, read_artifact


def resolve(client: Any, reference: str, storage_root: str) -> Artifact:
    """Return the artifact of a registry name (`presto-generator@candidate`, models:/…), an id or a URI.

    Raises:
        RegistryError: there is no such name or alias; the message lists the known ones.
        StoreError: the artifact is missing or damaged.
    """
    parsed = parse_reference(reference)
    if parsed:
        return read_artifact(open_folder(Catalog(client).get(parsed).uri))
    if "/" in reference:
        return read_artifact(open_folder(reference))
    return read_artifact(artifact_folder(open_folder(storage_root), reference))
