"""What one training stage differs by, and all that a worker needs to take part in one of its runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from pipelines.data.dataset import LatentDataset
from pipelines.storage.fence import Fence
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.manifest import Artifact, commit_artifact
from presto_core.config.loader import settings_to_yaml
from presto_core.metrics.latency import describe_hardware
from presto_core.models.model_card import ModelCard, serialize_network
from presto_core.networks.adapters import merge_adapters
from presto_core.training.health import HealthRange
from presto_core.training.parallel import Parallel
from presto_core.training.state import Algorithm, TrainState

Models = dict[str, Artifact]
"""Role -> the models a run starts from: teacher, layers."""


@dataclass(frozen=True)
class TrainSpec:
    """One run of a training stage, as it is sent to workers: URIs and settings, never credentials or tensors.

    Attributes:
        stage: what the stage differs by.
        config: settings of the stage.
        models: what it starts from.
        parent_ids: role -> id of every parent, for the artifact's manifest.
        row_flops: model FLOPs per row of the batch, a mean over steps; 0 is not known.
        skipped: shards that are left out because they are damaged.
        fence: the driver's right to write, which that of its workers ends with; None where no lease is held.
    """

    stage: TrainingDefinition
    config: Any  # the TrainingStage that `stage` is made for
    models: Models
    run_id: str
    dataset_uri: str
    scratch_uri: str
    artifact_uri: str
    parent_ids: dict[str, str]
    row_flops: float = 0.0
    skipped: tuple[str, ...] = ()
    fence: Fence | None = None

    def open_scratch(self) -> Folder:
        """The folder of checkpoints, rows and copies of weights."""
        return self._open(self.scratch_uri)

    def open_artifact(self) -> Folder:
        return self._open(self.artifact_uri)

    def _open(self, uri: str) -> Folder:
        folder = open_folder(uri)
        return self.fence.guard(folder) if self.fence else folder

    def make_card(self, dataset: LatentDataset) -> ModelCard:
        """What the artifact says of the model."""
        return self.stage.make_card(self.config, self.models, dataset)


def commit_model(spec: TrainSpec, dataset: LatentDataset, state: TrainState, details: dict[str, Any]) -> None:
    """Commit the averaged weights as the artifact, with `details` for its manifest; called on rank 0 alone."""
    (ema,) = state.emas.values()
    card = spec.make_card(dataset).to_dict()
    # training has ended: nothing needs the base any more; kept, so that a second attempt finds it merged
    ema.network = merge_adapters(ema.network, overwrite=True)
    commit_artifact(
        spec.open_artifact(),
        kind=spec.stage.kind,
        artifact_id=spec.run_id,
        config_yaml=settings_to_yaml(spec.config),
        parents=spec.parent_ids,
        files=serialize_network(ema.network),
        details={"model": card, **spec.stage.describe_state(state), **dataset.exclusion_manifest, **details},
        # a process that trains on a GPU has initialised CUDA
        hardware=describe_hardware("cuda" if torch.cuda.is_initialized() else "cpu"),
    )


@dataclass(frozen=True)
class TrainingDefinition:
    """What a training stage differs by; functions of its module, so that workers can import them.

    Attributes:
        name: of the stage.
        kind: of the artifact it makes.
        make_card: what the artifact says of the model: (config, models, dataset) -> card.
        make_algorithm: on every worker: (config, models, dataset, parallel, autocast dtype) -> Algorithm.
        progress_metrics, plotted_metrics: what the progress line shows, and what losses.png does.
        health: ranges that metrics should stay in.
        settle: completes settings with what follows from the models, before the run has an id: (config, parents).
        check: refuses models that do not fit before any worker starts: (config, parents).
        describe_state: further keys of the artifact's manifest that follow from the final state.
        commit: turns the final state into the artifact.
    """

    name: str
    kind: str
    make_card: Callable[[Any, Models, LatentDataset], ModelCard]
    make_algorithm: Callable[[Any, Models, LatentDataset, Parallel, torch.dtype | None], Algorithm]
    progress_metrics: tuple[str, ...]
    plotted_metrics: tuple[str, ...]
    health: dict[str, HealthRange] = field(default_factory=dict)
    settle: Callable[[Any, Models], Any] = lambda config, parents: config
    check: Callable[[Any, Models], None] = lambda config, parents: None
    describe_state: Callable[[TrainState], dict[str, Any]] = lambda state: {}
    commit: Callable[[TrainSpec, LatentDataset, TrainState, dict[str, Any]], None] = commit_model
