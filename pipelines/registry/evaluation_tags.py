"""Writes evaluation results onto the evaluated versions: numbers to search by, and texts to read."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from pipelines.console import print_warning
from pipelines.registry import names
from pipelines.registry.catalog import Catalog, Version
from pipelines.registry.publish import retry_conflicts
from pipelines.registry.run_facts import describe_loss, find_run, is_alive
from presto_core.artifacts.manifest import Artifact
from presto_core.metrics.table import METRICS

EMBEDDINGS = "embeddings.safetensors"
VALIDATION = "validation_"  # before the names of numbers on the validation split, which promotion reads
FORMER_SPLIT = "held_out"  # that reports without a split are of


def select_best_rows(result: dict[str, Any], model_ids: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return artifact id -> the row of its model's best system: the one that the validation split chose.

    Reports made before validation clips were sampled have no choice: there, the smallest Fréchet distance decides.

    Args:
        result: content of report.json.
        model_ids: input role -> artifact id.
    """
    rows = [row for row in result["systems"] if row["model"] in model_ids]
    best: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: -row["chosen"] if "chosen" in row else float(row["fd"])):
        best.setdefault(model_ids[row["model"]], row)
    return best


def record_measurements(client: Any, report: Artifact, result: dict[str, Any]) -> list[Version]:
    """Tag every version that a report evaluated, and return them."""
    catalog = Catalog(client)
    best = select_best_rows(result, report.manifest["parents"])
    versions = [version for artifact_id in best for version in catalog.list_artifact_versions(artifact_id)]
    for version in versions:
        row = best[version.artifact_id]
        numbers = {m.registry_name: float(row[m.name]) for m in METRICS.values() if m.registry_name and m.name in row}
        numbers |= {f"{VALIDATION}{name}": float(value) for name, value in row.get("validation", {}).items()}
        hardware, embedding = result["hardware"], result["embedding"]
        texts = {
            "system": str(row["name"]),
            "report": report.id,
            "hardware": f"{hardware['device']}, {hardware['threads']} thread(s)",
            "embedding": f"{embedding['name']} {embedding['digest']}",
            "split": str(result.get("split", FORMER_SPLIT)),
        }
        _tag_version(client, version, numbers, texts)
        run = find_run(client, version.mlflow_run)
        if not is_alive(run) or not _copy_to_run(client, version.mlflow_run, run, numbers, texts):
            print_warning(f"evaluate: the results are on {version.label} only: {describe_loss(client, version, run)}")
    return versions


def _tag_version(client: Any, version: Version, numbers: dict[str, float], texts: dict[str, str]) -> None:
    """Write the results where they are searched, compared and shown: a version outlives its run."""
    values = {f"{names.MEASURED}{key}": str(value) for key, value in (numbers | texts).items()}
    # what an earlier report measured and this one did not would stand beside another report's numbers
    stale = [key for key in version.tags if key.startswith(names.MEASURED) and key not in values]
    for key in stale:
        retry_conflicts(partial(client.delete_model_version_tag, version.name, str(version.number), key))
    for key, value in values.items():
        if version.tags.get(key) != value:
            retry_conflicts(partial(client.set_model_version_tag, version.name, str(version.number), key, value))


def _copy_to_run(client: Any, mlflow_run: str, run: Any, numbers: dict[str, float], texts: dict[str, str]) -> bool:
    """Copy the results to the run, for MLflow's own pages; return False if it was deleted meanwhile."""
    from mlflow.entities import Metric, RunTag
    from mlflow.exceptions import MlflowException

    now = int(time.time() * 1000)
    metrics = {f"{names.METRIC}{key}": value for key, value in numbers.items()}
    tags = {f"{names.MEASURED}{key}": value for key, value in texts.items()}
    new_metrics = [Metric(key, value, now, 0) for key, value in metrics.items() if run.data.metrics.get(key) != value]
    new_tags = [RunTag(key, value) for key, value in tags.items() if run.data.tags.get(key) != value]
    if not new_metrics and not new_tags:
        return True
    try:
        retry_conflicts(partial(client.log_batch, mlflow_run, metrics=new_metrics, tags=new_tags))
    except MlflowException:
        if is_alive(find_run(client, mlflow_run)):
            raise
        return False
    return True
