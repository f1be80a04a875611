"""A registry with two untrained models that can be loaded, and a real service on top, for tests and for the bench."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.registry.names import CHAMPION, GENERATOR
from pipelines.registry.publish import publish
from pipelines.serve.run import serving
from pipelines.serve.settings import ServeSettings
from pipelines.storage.filesystem import open_folder
from pipelines.tracking.client import Tracker, open_tracker
from presto_core.artifacts.manifest import Artifact, artifact_folder, commit_artifact
from presto_core.config.sections import ClusterConfig, StorageConfig, TrackingConfig
from presto_core.models.model_card import serialize_network
from tests.support.pretrained_models import make_card
from tests.support.small_versions import pack_nothing

CLUSTER = ClusterConfig(cpus=2, object_store_mb=128)


@dataclass(frozen=True)
class LoadableRegistry:
    """A database of MLflow and a store, in one folder."""

    tracking: TrackingConfig
    storage: StorageConfig
    tracker: Tracker

    def add(self, seed: int, *, is_damaged: bool = False) -> int:
        """Register an untrained generator, whose weights may lack an end, and return its number."""
        root, artifact = open_folder(self.storage.root), _commit(self.storage.root, seed)
        if is_damaged:
            (weights,) = Path(self.storage.root).rglob(f"{artifact.id}/weights.safetensors")
            weights.write_bytes(weights.read_bytes()[:-4])
        run = self.tracker.client.create_run(self.tracker.experiment_id).info.run_id
        made = publish(
            self.tracker.client, GENERATOR, artifact, mlflow_run=run, stage="made", root=root,
            pack=pack_nothing,
        )  # fmt: skip
        return made.number

    def promote(self, number: int) -> None:
        """Make a version the champion: the last step of a promotion."""
        self.tracker.client.set_registered_model_alias(GENERATOR, CHAMPION, str(number))


def open_loadable_registry(folder: Path) -> LoadableRegistry:
    tracking = TrackingConfig(uri=f"sqlite:///{folder / 'mlflow.db'}")
    return LoadableRegistry(tracking, StorageConfig(root=str(folder / "store")), open_tracker(tracking))


def _commit(root: str, seed: int) -> Artifact:
    card, artifact_id = make_card(), f"{seed:016x}"
    torch.manual_seed(seed)
    return commit_artifact(
        artifact_folder(open_folder(root), artifact_id),
        kind="generator",
        artifact_id=artifact_id,
        config_yaml=f"seed: {seed}\n",
        parents={"dataset": "0" * 16},
        files=serialize_network(card.build_network()),
        details={"model": card.to_dict()},
    )


@contextmanager
def run_service(**settings: Any) -> Iterator[str]:
    """Run a real service on a free port of this machine; gives its URL."""
    with serving(ServeSettings(port=0, **settings), CLUSTER) as url:
        yield url
