"""Stage: base model -> one that runs fewer blocks where noise is high, by Presto-L or as its ASE baseline."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from pipelines.data.dataset import LatentDataset
from pipelines.evaluate import plots
from pipelines.registry.compatibility import require_teacher_of
from pipelines.stages.runner import Workplace, run_stage
from pipelines.storage.filesystem import open_folder
from pipelines.train.ray_train import run_job
from pipelines.train.resume import Resume
from pipelines.train.step_flops import row_flops
from pipelines.train.sweep_hook import Trial
from pipelines.train.worker import Job
from presto_core.artifacts.manifest import (
    Artifact,
    commit_artifact,
    read_artifact,
)
from presto_core.config.loader import settings_yaml
from presto_core.config.schema import LayersStage
from presto_core.models.model_card import (
    ModelCard,
    load_model,
    weights_file,
)
from presto_core.training.health import TEACHER
from presto_core.training.layer_distillation import LayerDistillation, budget_of
from presto_core.training.parallel import Parallel
from presto_core.training.state import TrainState

PLOTTED = ("dsm_loss", "self_teacher_loss", "grad_norm", "blocks_run", *(f"dsm_loss/q{i}" for i in (1, 2, 3, 4)))


def run(config: LayersStage, resume: Resume = Resume(), trial: Trial | None = None) -> Artifact:
    """Distil a base model's layers, go on with an interrupted distillation, or find it done.

    Raises:
        UserError: teacher or dataset unknown or not made for each other, a table that does not fit the depth, ...
    """

    def make(place: Workplace) -> None:
        teacher, dataset = place.parents["teacher"], place.parents["dataset"]
        require_teacher_of(teacher, dataset)
        budget_of(config.layers, ModelCard(**teacher.manifest["model"]).depth)  # refused here, not by a worker
        job = Job(
            label="distill-layers",
            build=partial(build, config, teacher.uri),
            finish=partial(finish, config, place.run_id, place.artifact.uri, teacher.uri, place.parent_ids),
            dataset_uri=dataset.uri,
            scratch_uri=place.scratch.uri,
            seed=config.seed,
            global_batch_size=config.layers.global_batch_size,
            kind="layers",
            card=partial(_card, config, teacher),
            updates=config.updates,
            total_steps=config.layers.steps,
            loop=config.loop,
            cluster=config.cluster,
            health=config.health,
            validation=config.validation,
            data=config.data,
            caption_dropout=config.layers.caption_dropout,
            watch=("dsm_loss", "self_teacher_loss", "blocks_run", "step_seconds"),
            expected=TEACHER,
            row_flops=row_flops(config, teacher.manifest["model"]),
        )
        run_job(job, place.run, place.trial)
        place.show("losses.png", lambda: plots.losses({name: place.run.history(name) for name in PLOTTED}))

    return run_stage("distill-layers", config, make, register_as=config.name, resume=resume, trial=trial)


def _card(config: LayersStage, teacher: Artifact, dataset: LatentDataset) -> ModelCard:
    """The teacher's, and the table it is trained with."""
    card = ModelCard(**teacher.manifest["model"])
    return replace(card, layer_budget=budget_of(config.layers, card.depth).to_dict())


def build(
    config: LayersStage, teacher_uri: str, dataset: LatentDataset, parallel: Parallel, dtype: torch.dtype | None
) -> LayerDistillation:
    """The algorithm, on every worker."""
    folder = open_folder(teacher_uri)
    network, card = load_model(folder, read_artifact(folder).manifest)
    return LayerDistillation(
        config.layers, network.to(parallel.device), sigma_data=card.sigma_data, parallel=parallel, autocast_dtype=dtype
    )


def finish(
    config: LayersStage,
    run_id: str,
    uri: str,
    teacher_uri: str,
    parents: dict[str, str],
    dataset: LatentDataset,
    state: TrainState,
    details: dict[str, Any],
) -> None:
    """Commit the averaged network; its card is the teacher's, and the table it was trained with."""
    card = _card(config, read_artifact(open_folder(teacher_uri)), dataset)
    commit_artifact(
        open_folder(uri),
        kind="layers",
        artifact_id=run_id,
        config_yaml=settings_yaml(config),
        parents=parents,
        files=weights_file(state.emas["layers"].network),
        details={"model": card.to_dict(), **dataset.left_out, **details},
    )
