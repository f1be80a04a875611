"""Settings of versions: written on the version when it is registered, so that no run must be kept to search by them.

Versions of earlier releases have no such tag: theirs are the params of the MLflow run, deleted or not, and if that is
gone, the configuration in the artifact.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from pipelines.redaction import REDACTED, is_secret_key, redact
from pipelines.registry import names
from pipelines.registry.version import Version
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.manifest import CONFIG, Artifact, read_artifact
from presto_core.artifacts.store import read_file
from presto_core.config.loader import flatten
from presto_core.errors import UserError

MAX_CHARACTERS = 50_000  # of the tag; MLflow accepts twice as many
MAX_VALUE = 1000  # characters of one setting, if they are too many together
RUNS_PER_REQUEST = 100

Settings = dict[str, Any]


def make_settings_tag(artifact: Artifact, params: Mapping[str, str]) -> str:
    """Return the tag of a version: the settings in its artifact, and what only the params of its run have."""
    settings = {key: parse_param(value) for key, value in params.items()} | read_stored_settings(artifact)
    settings = {key: _redact_setting(key, value) for key, value in sorted(settings.items())}
    tag = json.dumps(settings, default=str)
    if len(tag) > MAX_CHARACTERS:
        settings = {key: value for key, value in settings.items() if len(json.dumps(value, default=str)) <= MAX_VALUE}
        tag = json.dumps(settings, default=str)
    return tag if len(tag) <= MAX_CHARACTERS else "{}"


def read_settings(client: Any, versions: Sequence[Version]) -> list[Settings]:
    """Return the settings of versions, in their order; empty where nothing is left that has them."""
    settings = {version.label: _parse_tag(version) for version in versions}
    missing = [version for version in versions if settings[version.label] is None]
    if missing:
        params = _read_params(client, [version.mlflow_run for version in missing if version.mlflow_run])
        for version in missing:
            settings[version.label] = params.get(version.mlflow_run) or _read_artifact_settings(version)
    return [settings[version.label] or {} for version in versions]


def read_stored_settings(artifact: Artifact) -> Settings:
    """Return the settings in an artifact's configuration; none if it cannot be read."""
    try:
        content = yaml.safe_load(read_file(open_folder(artifact.uri), CONFIG, artifact.manifest))
    except (UserError, KeyError, yaml.YAMLError):
        return {}
    return flatten(content) if isinstance(content, dict) else {}


def parse_param(text: str) -> Any:
    """Return the value of an MLflow param: a text, or JSON of anything else."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _parse_tag(version: Version) -> Settings | None:
    try:
        content = json.loads(version.tags[names.SETTINGS])
    except (KeyError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _read_params(client: Any, runs: Sequence[str]) -> dict[str, Settings]:
    """Return the params of runs by id, also of deleted ones; those that are gone are left out."""
    from mlflow.entities import ViewType

    experiments = [e.experiment_id for e in client.search_experiments(view_type=ViewType.ALL, max_results=1000)]
    found = {}
    for start in range(0, len(runs), RUNS_PER_REQUEST):
        ids = ",".join(f"'{run}'" for run in runs[start : start + RUNS_PER_REQUEST] if run.isalnum())
        query = f"attributes.run_id IN ({ids})"
        for run in client.search_runs(experiments, query, ViewType.ALL, RUNS_PER_REQUEST) if ids else ():
            found[run.info.run_id] = {key: parse_param(value) for key, value in run.data.params.items()}
    return found


def _read_artifact_settings(version: Version) -> Settings:
    try:
        return read_stored_settings(read_artifact(open_folder(version.uri)))
    except UserError:
        return {}


def _redact_setting(key: str, value: Any) -> Any:
    if is_secret_key(key) and value not in ("", None):
        return REDACTED
    if isinstance(value, list):
        return [_redact_setting("", item) for item in value]
    return redact(value) if isinstance(value, str) else value
