"""What a run started from, for its record: the commit, the environment, the artifacts."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib import metadata
from typing import Any

from presto_core.registry.manifest import Artifact, git_commit


@lru_cache(maxsize=1)
def environment_hash() -> str:
    """sha256 over the names and versions of all installed packages: two runs with the same had the same code around."""
    found = {(d.metadata["Name"] or "").lower().replace("_", "-"): d.version for d in metadata.distributions()}
    return hashlib.sha256("\n".join(f"{name}=={found[name]}" for name in sorted(found)).encode()).hexdigest()


@lru_cache(maxsize=1)
def environment_tags() -> dict[str, str]:
    """Tags of a run that say which code it ran, under MLflow's own name where there is one."""
    commit = git_commit()
    return {"presto.environment": environment_hash()} | ({"mlflow.source.git.commit": commit} if commit else {})


def log_parents(client: Any, mlflow_run: str, parents: dict[str, Artifact]) -> None:
    """Tell MLflow which artifacts a run reads: as data sets, by id and place, with their role as context."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    from pipelines.redaction import redacted

    inputs = [
        DatasetInput(
            Dataset(
                name=f"presto-{artifact.kind}",
                digest=artifact.id,
                source_type="s3" if artifact.uri.startswith("s3://") else "local",
                source=redacted(f'{{"uri": "{artifact.uri}"}}'),
            ),
            [InputTag("mlflow.data.context", role)],
        )
        for role, artifact in parents.items()
    ]
    if inputs:
        client.log_inputs(mlflow_run, datasets=inputs)
