"""In what two versions differ: settings, what was measured, parents, code and environment."""

from __future__ import annotations

from typing import Any

import yaml

from pipelines.registry.catalog import Version
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.manifest import CONFIG, read_artifact
from presto_core.artifacts.store import read_file
from presto_core.config.loader import flatten

Pair = tuple[Any, Any]


def differences(client: Any, one: Version, other: Version) -> dict[str, dict[str, Pair]]:
    """Section -> what -> (of the one, of the other): only what differs.

    Raises:
        StoreError: an artifact cannot be read.
    """
    return {
        "settings": _different(_settings(one), _settings(other)),
        "measured": _different(one.measured, other.measured),
        "parents": _different(one.parents, other.parents),
        "made with": _different(_made_with(client, one), _made_with(client, other)),
        "version": _different(_facts(one), _facts(other)),
    }


def _different(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Pair]:
    keys = dict.fromkeys([*one, *other])
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def _settings(version: Version) -> dict[str, Any]:
    folder = open_folder(version.uri)
    said = yaml.safe_load(read_file(folder, CONFIG, read_artifact(folder).manifest)) or {}
    return flatten(said)


def _made_with(client: Any, version: Version) -> dict[str, Any]:
    tags = client.get_run(version.mlflow_run).data.tags
    known = {"environment": tags.get("presto.environment", "")[:12], "commit": tags.get("mlflow.source.git.commit")}
    return known | dict(read_artifact(open_folder(version.uri)).manifest.get("made_with", {}))


def _facts(version: Version) -> dict[str, Any]:
    return {
        "method": version.method,
        "kind": version.kind,
        "licences": version.licences,
        "content": version.content[:12],
    }
