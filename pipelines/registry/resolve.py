"""Resolves a user's reference to an artifact: a model of the package, a registry name, an id or a URI."""

from __future__ import annotations

from typing import Any

from pipelines.registry.catalog import Catalog
from pipelines.registry.names import Reference, RegistryError, parse_reference
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.manifest import Artifact, artifact_folder, read_artifact
from presto_core.models.pretrained import find_pretrained, make_pretrained_uri, suggest_pretrained


def resolve(client: Any, reference: str, storage_root: str) -> Artifact:
    """Return the artifact of a pretrained model's name, a registry name (`presto-generator@candidate`, models:/…), an
    id or a URI.

    Raises:
        RegistryError: there is no such name or alias; the message lists the known ones.
        StoreError: the artifact is missing or damaged.
        UserError: a pretrained model is not in this installation.
    """
    if pretrained := resolve_pretrained(reference):
        return pretrained
    parsed = parse_reference(reference)
    if parsed:
        return _resolve_registered(client, parsed)
    if "/" in reference:
        return read_artifact(open_folder(reference))
    return read_artifact(artifact_folder(open_folder(storage_root), reference))


def resolve_pretrained(reference: str) -> Artifact | None:
    """Return the model of the package that a reference names, by name or id; None if it names something else.

    Neither MLflow nor storage is touched.

    Raises:
        StoreError: the model's manifest is damaged.
        UserError: it is not in this installation.
    """
    name = find_pretrained(reference)
    return read_artifact(open_folder(make_pretrained_uri(name))) if name else None


def _resolve_registered(client: Any, reference: Reference) -> Artifact:
    try:
        version = Catalog(client).get(reference)
    except RegistryError as error:
        if similar := suggest_pretrained(reference.name):
            raise RegistryError(f"{error}; did you mean {similar}, which comes with the package?") from None
        raise
    return read_artifact(open_folder(version.uri))
