"""`save` of the MLflow model, imported on its first call: importing MLflow takes seconds."""

from __future__ import annotations

from pathlib import Path


def save_mlflow_model(artifact: Path, folder: Path) -> None:
    from pipelines.inference.mlflow_model import save

    save(artifact, folder)
