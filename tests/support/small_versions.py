"""Versions of small made-up artifacts, registered as stages do, without training anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from typer.testing import CliRunner, Result

from infra.cli.main import app
from pipelines.registry import names
from pipelines.registry.catalog import Catalog, Version
from pipelines.registry.evaluation_tags import record_measurements
from pipelines.registry.names import Reference
from pipelines.registry.publish import publish
from pipelines.storage.filesystem import open_folder
from pipelines.tracking.client import Tracker, open_tracker
from presto_core.artifacts.manifest import Artifact, artifact_folder, commit_artifact
from presto_core.config.sections import TrackingConfig

ODD_NAMES = (
    "o'brien",
    'say "hi"',
    "100%",
    "a`b",
    "back\\",
    "a[red]b",
    "esc\x1b[31m",
    "a;b",
    "größe 漢😀",
    "x -- y",
    "a_b",
)
"""Names of models that MLflow takes, but not its filters, a terminal or rich's markup."""
NOTHING: Mapping[str, Any] = MappingProxyType({})
HARDWARE = {"device": "a made-up processor", "threads": 1}


@dataclass(frozen=True)
class SmallRegistry:
    """A storage root and its tracker; versions are registered in MLflow by their stage's own code."""

    root: str
    tracker: Tracker

    @property
    def client(self) -> Any:
        return self.tracker.client

    @property
    def catalog(self) -> Catalog:
        return Catalog(self.client)

    def add(
        self,
        name: str,
        *,
        kind: str = "generator",
        settings: Mapping[str, Any] = NOTHING,
        parents: Mapping[str, str] = NOTHING,
        metrics: Mapping[str, float] = NOTHING,
        details: Mapping[str, Any] = NOTHING,
        seed: str = "",
    ) -> Version:
        """Register an artifact that its name, settings and `seed` identify, with a run of its own."""
        key = json.dumps([name, kind, dict(settings), dict(parents), seed], default=str)
        artifact_id = hashlib.sha256(key.encode()).hexdigest()[:16]
        artifact = commit_artifact(
            artifact_folder(open_folder(self.root), artifact_id),
            kind=kind,
            artifact_id=artifact_id,
            config_yaml=yaml.safe_dump(dict(settings)),
            parents=dict(parents),
            files={"made.json": key.encode()},
            details=dict(details),
        )
        run = self.client.create_run(self.tracker.experiment_id).info.run_id
        for metric, value in metrics.items():
            self.client.log_metric(run, metric, value)
        made = publish(
            self.client, name, artifact, mlflow_run=run, stage="made", root=open_folder(self.root), pack=pack_nothing
        )
        return self.catalog.get(Reference(name, number=made.number))

    def evaluate(self, version: Version, **numbers: float) -> None:
        """Record a report's numbers of a version."""
        row = {"name": "S 4", "model": "generator", "chosen": True, "nfe": 4} | numbers
        result = {"systems": [row], "hardware": HARDWARE, "embedding": {"name": "made-up", "digest": "e" * 64}}
        report = Artifact("f" * 16, "report", f"{self.root}/report", {"parents": {"generator": version.artifact_id}})
        record_measurements(self.client, report, result)


def open_small_registry(root: str) -> SmallRegistry:
    """The registry of the current folder, with another storage root."""
    return SmallRegistry(root, open_tracker(TrackingConfig()))


def make_shared_registry(root: str) -> SmallRegistry:
    """A registry with one version, in an MLflow that holds models and versions of another tool."""
    made = open_small_registry(root)
    made.add("presto-generator", settings={"seed": 1})
    for name in ("their-model", *ODD_NAMES):
        made.client.create_registered_model(name)
        made.client.create_model_version(name, source="s3://theirs/model", run_id=None)
    made.client.create_model_version("presto-generator", source="s3://theirs/model", run_id=None)
    wrong = {names.CONTENT: "none", names.LICENCES: "MIT", names.SIZE: "big", f"{names.PARENT}teacher": "o'brien"}
    made.client.create_model_version("presto-generator", source="s3://theirs/model", tags=wrong)
    return made


def delete_run(shelf: SmallRegistry, version: Version, how: str) -> None:
    """Mark a version's run as deleted, or remove it for good (`gone`)."""
    shelf.client.delete_run(version.mlflow_run)
    if how == "gone":  # as `mlflow gc` does
        shelf.client._tracking_client.store._hard_delete_run(version.mlflow_run)


def run_presto(*args: str, code: int = 0) -> Result:
    """Run a command of `presto registry`, which must exit with `code`."""
    done = CliRunner().invoke(app, ["registry", *args], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done


def pack_nothing(folder: Path, target: Path) -> None:
    target.mkdir(parents=True)
    (target / "MLmodel").write_text("{}")
