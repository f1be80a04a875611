"""Names of the MLflow tags that runs and model versions share."""

from __future__ import annotations

RUN_ID, ARTIFACT_URI, ARTIFACT_ID = "presto.run_id", "presto.artifact_uri", "presto.artifact_id"
KIND, METHOD, STAGE, CONTENT = "presto.kind", "presto.method", "presto.stage", "presto.content"
PARENT, PARENTS = "presto.parent.", "presto.parents"  # one tag per role; all ids in one tag, for searches
STORAGE_ROOT = "presto.storage_root"  # tag of a run: the root that it writes below
