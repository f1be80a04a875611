"""Differences between two versions: settings, measurements, parents, code and environment."""

from __future__ import annotations

from typing import Any

import yaml

from pipelines.registry.catalog import Version
from pipelines.registry.run_facts import read_code
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.manifest import CONFIG, read_artifact
from presto_core.artifacts.store import read_file
from presto_core.config.loader import flatten

Pair = tuple[Any, Any]


def diff_versions(client: Any, one: Version, other: Version) -> dict[str, dict[str, Pair]]:
    """Return section -> key -> (value of `one`, value of `other`), for keys that differ.

    Raises:
        StoreError: an artifact cannot be read.
    """
    return {
        "settings": _diff_dicts(_read_settings(one), _read_settings(other)),
        "measured": _diff_dicts(one.measurements, other.measurements),
        "parents": _diff_dicts(one.parents, other.parents),
        "made with": _diff_dicts(_read_environment(client, one), _read_environment(client, other)),
        "version": _diff_dicts(_version_fields(one), _version_fields(other)),
    }


def _diff_dicts(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Pair]:
    keys = dict.fromkeys([*one, *other])
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def _read_settings(version: Version) -> dict[str, Any]:
    folder = open_folder(version.uri)
    settings = yaml.safe_load(read_file(folder, CONFIG, read_artifact(folder).manifest)) or {}
    return flatten(settings)


def _read_environment(client: Any, version: Version) -> dict[str, Any]:
    code = read_code(client, version)
    environment = {"environment": code["environment"][:12], "commit": code["commit"] or None}
    return environment | dict(read_artifact(open_folder(version.uri)).manifest.get("made_with", {}))


def _version_fields(version: Version) -> dict[str, Any]:
    return {
        "method": version.method,
        "kind": version.kind,
        "licences": version.licences,
        "content": version.content[:12],
    }
