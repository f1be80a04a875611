"""Stage: latents -> base model, trained with classifier-free conditioning so that it can be guided."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from pipelines.data.dataset import (
    SIGMA_DATA,
    LatentDataset,
    open_dataset,
)
from pipelines.evaluate import plots
from pipelines.stages.runner import StageContext, run_stage
from pipelines.storage.filesystem import open_folder
from pipelines.train.ray_train import launch_training
from pipelines.train.resume import ResumeOptions
from pipelines.train.step_flops import row_flops
from pipelines.train.sweep_hook import Trial
from pipelines.train.worker import TrainSpec
from presto_core.artifacts.manifest import Artifact, commit_artifact
from presto_core.config.loader import settings_to_yaml
from presto_core.config.schema import TeacherStage
from presto_core.models.model_card import ModelCard, serialize_network
from presto_core.training.health import TEACHER
from presto_core.training.parallel import Parallel
from presto_core.training.state import TrainState
from presto_core.training.teacher import TeacherTraining


def run(config: TeacherStage, resume: ResumeOptions = ResumeOptions(), trial: Trial | None = None) -> Artifact:
    """Train a base model, go on with an interrupted training, or find it done.

    Raises:
        UserError: dataset unknown, cluster too small, divergence, storage full: each in one sentence.
    """

    def execute(ctx: StageContext) -> None:
        spec = TrainSpec(
            label="train-teacher",
            build=partial(build, config),
            finish=partial(finish, config, ctx.run_id, ctx.artifact.uri, ctx.parent_ids),
            dataset_uri=ctx.parents["dataset"].uri,
            scratch_uri=ctx.scratch.uri,
            seed=config.seed,
            global_batch_size=config.teacher.global_batch_size,
            kind="teacher",
            card=partial(make_card, config),
            updates=config.updates,
            total_steps=config.teacher.steps,
            loop=config.loop,
            cluster=config.cluster,
            health=config.health,
            validation=config.validation,
            data=config.data,
            caption_dropout=config.teacher.caption_dropout,
            watch=("dsm_loss", "grad_norm", "step_seconds"),
            expected=TEACHER,
            row_flops=row_flops(config, make_card(config, open_dataset(ctx.parents["dataset"].uri)).to_dict()),
        )
        launch_training(spec, ctx.run, ctx.trial)
        names = ("dsm_loss", "grad_norm", *(f"dsm_loss/q{i}" for i in (1, 2, 3, 4)))
        ctx.save_plot("losses.png", lambda: plots.plot_losses({name: ctx.run.read_history(name) for name in names}))

    return run_stage("train-teacher", config, execute, register_as=config.name, resume=resume, trial=trial)


def make_card(config: TeacherStage, dataset: LatentDataset) -> ModelCard:
    """What a model trained on this data set must remember of it."""
    info = dataset.info
    return ModelCard(
        network=config.network.model_dump(mode="json"),
        sigma_data=SIGMA_DATA,
        codec=info["codec"],
        text=info["text"],
        **info["latents"],
    )


def build(
    config: TeacherStage, dataset: LatentDataset, parallel: Parallel, autocast_dtype: torch.dtype | None
) -> TeacherTraining:
    """The algorithm, on every worker."""
    network = make_card(config, dataset).build_network().to(parallel.device)
    return TeacherTraining(
        config.teacher, network, sigma_data=SIGMA_DATA, parallel=parallel, autocast_dtype=autocast_dtype
    )


def finish(
    config: TeacherStage,
    run_id: str,
    uri: str,
    parents: dict[str, str],
    dataset: LatentDataset,
    state: TrainState,
    details: dict[str, Any],
) -> None:
    """Commit the averaged weights as the artifact."""
    commit_artifact(
        open_folder(uri),
        kind="teacher",
        artifact_id=run_id,
        config_yaml=settings_to_yaml(config),
        parents=parents,
        files=serialize_network(state.emas["teacher"].network),
        details={"model": make_card(config, dataset).to_dict(), **dataset.exclusion_manifest, **details},
    )
