"""Resolves a user's reference to an artifact: a model of the package, a registry name, an id or a URI."""

from __future__ import annotations

import re
from typing import Any

from pipelines.registry import names
from pipelines.registry.catalog import Catalog
from pipelines.registry.names import Reference, RegistryError, parse_reference
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.manifest import Artifact, artifact_folder, read_artifact
from presto_core.artifacts.manifest_schema import check_identity, content_hash
from presto_core.artifacts.validate import UnsafeArtifactError
from presto_core.models.pretrained import find_pretrained, make_pretrained_uri, suggest_pretrained


def resolve(client: Any, reference: str, storage_root: str) -> Artifact:
    """Return the artifact of a pretrained model's name, a registry name (`presto-generator@candidate`, models:/…), an
    id or a URI.

    Raises:
        RegistryError: there is no such name or alias; the message lists the known ones.
        StoreError: the artifact is missing or damaged.
        UnsafeArtifactError: its content is not what was registered, or its id is another.
        UserError: a pretrained model is not in this installation.
    """
    if pretrained := resolve_pretrained(reference):
        return pretrained
    parsed = parse_reference(reference)
    if parsed:
        return _resolve_registered(client, parsed)
    if "/" in reference:
        return _check_registered(client, _read(open_folder(reference)))
    artifact = _read(artifact_folder(open_folder(storage_root), reference))
    if artifact.id != reference:
        raise UnsafeArtifactError(f"{artifact.uri} holds artifact {artifact.id[:40]!r}, not {reference}; do not use it")
    return _check_registered(client, artifact)


def resolve_pretrained(reference: str) -> Artifact | None:
    """Return the model of the package that a reference names, by name or id; None if it names something else.

    Neither MLflow nor storage is touched.

    Raises:
        StoreError: the model's manifest is damaged.
        UserError: it is not in this installation.
    """
    name = find_pretrained(reference)
    return read_artifact(open_folder(make_pretrained_uri(name))) if name else None


def _read(folder: Folder, *, content: str = "") -> Artifact:
    artifact = read_artifact(folder, content=content)
    check_identity(artifact.manifest)
    return artifact


def _resolve_registered(client: Any, reference: Reference) -> Artifact:
    try:
        version = Catalog(client).get(reference)
    except RegistryError as error:
        if similar := suggest_pretrained(reference.name):
            raise RegistryError(f"{error}; did you mean {similar}, which comes with the package?") from None
        raise
    return _read(open_folder(version.uri), content=version.content)


def _check_registered(client: Any, artifact: Artifact) -> Artifact:
    """Compare an artifact that is named without the registry with what was registered under its id, if it was."""
    if client is None or not re.fullmatch(r"[0-9a-f]{16}", artifact.id):
        return artifact
    registered = {v.content for v in Catalog(client).iter_versions(tags={names.ARTIFACT_ID: artifact.id})}
    if registered and (found := content_hash(artifact.manifest)) not in registered:
        raise UnsafeArtifactError(
            f"{artifact.uri} has content {found[:12]}, but artifact {artifact.id} was registered with "
            f"{' or '.join(sorted(content[:12] for content in registered))}: its manifest has changed since; restore it"
        )
    return artifact
