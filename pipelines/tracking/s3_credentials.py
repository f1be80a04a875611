"""Credentials of MLflow's own S3 client, which stores the artifacts of runs where no server does it for its clients."""

from __future__ import annotations

import sys
from threading import Lock
from typing import Any

from pipelines.storage.s3_session import fingerprint_environment

_LOCK = Lock()
_used: list[tuple[object, ...]] = []  # what determined them when MLflow's client found its own


def follow_credentials() -> None:
    """Let MLflow's S3 client look for credentials anew if the environment, or a file that may hold them, has changed.

    boto3's default session, which MLflow uses, renews those of roles and processes; others, it reads once.
    """
    with _LOCK:
        found = fingerprint_environment()
        if _used != [found]:
            _used[:] = [found]
            boto3: Any = sys.modules.get("boto3")
            repository: Any = sys.modules.get("mlflow.store.artifact.s3_artifact_repo")
            if boto3:
                boto3.DEFAULT_SESSION = None
            if repository:
                repository._cached_get_s3_client.cache_clear()
