"""The MLflow run of a version, which can be deleted: whether it is there, and how to get it back."""

from __future__ import annotations

import json
import shlex
from typing import Any

from pipelines.redaction import strip_password
from pipelines.registry import names
from pipelines.registry.version import Version

GIT_COMMIT = "mlflow.source.git.commit"  # tag of a run
_GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def find_run(client: Any, mlflow_run: str) -> Any | None:
    """Return a run of MLflow, also one that is marked as deleted; None if it is gone for good or there was none."""
    from mlflow.exceptions import MlflowException

    if not mlflow_run:
        return None
    try:
        return client.get_run(mlflow_run)
    except MlflowException as error:
        if error.error_code not in _GONE:
            raise
        return None


def is_alive(run: Any | None) -> bool:
    """Return whether MLflow accepts tags and metrics for a run."""
    return run is not None and run.info.lifecycle_stage == "active"


def read_code(client: Any, version: Version) -> dict[str, str]:
    """Return the commit and the hash of the packages that made a version; empty where nothing recorded them.

    Versions of earlier releases have them on their run only.
    """
    keys = {"commit": (names.COMMIT, GIT_COMMIT), "environment": (names.ENVIRONMENT, names.ENVIRONMENT)}
    found = {what: version.tags.get(of_version, "") for what, (of_version, _) in keys.items()}
    if not all(found.values()) and (run := find_run(client, version.mlflow_run)):
        found = {what: found[what] or run.data.tags.get(of_run, "") for what, (_, of_run) in keys.items()}
    return found


def read_signals(client: Any, version: Version) -> dict[str, float]:
    """Return the last metrics of a version's training, among them its health signals; empty where they are lost."""
    try:
        signals = json.loads(version.tags.get(names.HEALTH, "{}"))
    except ValueError:
        signals = {}
    if signals and isinstance(signals, dict):
        return {str(name): float(value) for name, value in signals.items()}
    run = find_run(client, version.mlflow_run)
    return dict(run.data.metrics) if run else {}


def describe_loss(client: Any, version: Version, run: Any | None) -> str:
    """Return what happened to the run of a version, with the command that restores it if one can."""
    if run is None:
        return f"MLflow run {version.mlflow_run or 'of it'} is gone for good"
    shown = strip_password(client.tracking_uri)
    server = shlex.quote(shown if shown == client.tracking_uri else "...")
    return (
        f"MLflow run {version.mlflow_run} is deleted; restore it with: "
        f"MLFLOW_TRACKING_URI={server} mlflow runs restore --run-id {version.mlflow_run}"
    )
