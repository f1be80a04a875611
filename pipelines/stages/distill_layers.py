"""Stage: base model -> one that runs fewer blocks where noise is high, by Presto-L or as its ASE baseline."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from pipelines.data.dataset import LatentDataset
from pipelines.evaluate import plots
from pipelines.registry.compatibility import check_teacher_matches_dataset
from pipelines.stages.runner import StageContext, run_stage
from pipelines.storage.filesystem import open_folder
from pipelines.train.ray_train import launch_training
from pipelines.train.resume import ResumeOptions
from pipelines.train.step_flops import row_flops
from pipelines.train.sweep_hook import Trial
from pipelines.train.worker import TrainSpec
from presto_core.artifacts.manifest import (
    Artifact,
    commit_artifact,
    read_artifact,
)
from presto_core.config.loader import settings_to_yaml
from presto_core.config.schema import LayersStage
from presto_core.models.model_card import (
    ModelCard,
    load_model,
    serialize_network,
)
from presto_core.training.health import TEACHER
from presto_core.training.layer_distillation import LayerDistillation, make_layer_budget
from presto_core.training.parallel import Parallel
from presto_core.training.state import TrainState

PLOTTED_METRICS = (
    "dsm_loss",
    "self_teacher_loss",
    "grad_norm",
    "blocks_run",
    *(f"dsm_loss/q{i}" for i in (1, 2, 3, 4)),
)


def run(config: LayersStage, resume: ResumeOptions = ResumeOptions(), trial: Trial | None = None) -> Artifact:
    """Distil a base model's layers, go on with an interrupted distillation, or find it done.

    Raises:
        UserError: teacher or dataset unknown or not made for each other, a table that does not fit the depth, ...
    """

    def execute(ctx: StageContext) -> None:
        teacher, dataset = ctx.parents["teacher"], ctx.parents["dataset"]
        check_teacher_matches_dataset(teacher, dataset)
        make_layer_budget(config.layers, ModelCard(**teacher.manifest["model"]).depth)  # refused here, not by a worker
        spec = TrainSpec(
            label="distill-layers",
            build=partial(build, config, teacher.uri),
            finish=partial(finish, config, ctx.run_id, ctx.artifact.uri, teacher.uri, ctx.parent_ids),
            dataset_uri=dataset.uri,
            scratch_uri=ctx.scratch.uri,
            seed=config.seed,
            global_batch_size=config.layers.global_batch_size,
            kind="layers",
            card=partial(_make_card, config, teacher),
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
        launch_training(spec, ctx.run, ctx.trial)
        ctx.save_plot(
            "losses.png", lambda: plots.plot_losses({name: ctx.run.read_history(name) for name in PLOTTED_METRICS})
        )

    return run_stage("distill-layers", config, execute, register_as=config.name, resume=resume, trial=trial)


def _make_card(config: LayersStage, teacher: Artifact, dataset: LatentDataset) -> ModelCard:
    """The teacher's, and the table it is trained with."""
    card = ModelCard(**teacher.manifest["model"])
    return replace(card, layer_budget=make_layer_budget(config.layers, card.depth).to_dict())


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
    card = _make_card(config, read_artifact(open_folder(teacher_uri)), dataset)
    commit_artifact(
        open_folder(uri),
        kind="layers",
        artifact_id=run_id,
        config_yaml=settings_to_yaml(config),
        parents=parents,
        files=serialize_network(state.emas["layers"].network),
        details={"model": card.to_dict(), **dataset.exclusion_manifest, **details},
    )
