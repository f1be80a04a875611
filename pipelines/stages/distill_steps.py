"""Stage: base model, or a layer-distilled one, -> few-step generator by Presto-S or Presto-LS."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from pipelines.data.dataset import LatentDataset
from pipelines.evaluate import plots
from pipelines.registry.compatibility import check_layers_match_teacher, check_teacher_matches_dataset
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
from presto_core.config.layers import PrestoLSBudget
from presto_core.config.loader import settings_to_yaml
from presto_core.config.schema import StepsStage
from presto_core.models.model_card import (
    ModelCard,
    load_model,
    serialize_network,
)
from presto_core.networks.layer_budget import LayerBudget
from presto_core.training.health import STEP_DISTILLATION
from presto_core.training.parallel import Parallel
from presto_core.training.state import TrainState
from presto_core.training.step_distillation import StepDistillation

PLOTTED_METRICS = (
    "dsm_loss",
    "dmd_loss",
    "gan_loss",
    "d_real",
    "d_fake",
    "discriminator_loss",
    "dmd_grad_norm",
    "gan_grad_norm",
    "x0_std",
)


def run(config: StepsStage, resume: ResumeOptions = ResumeOptions(), trial: Trial | None = None) -> Artifact:
    """Distill a base model, go on with an interrupted distillation, or find it done.

    Raises:
        UserError: teacher, layer-distilled model or dataset unknown or not made for each other, a table that does not
            fit the depth, divergence, storage full, ...
    """

    def execute(ctx: StageContext) -> None:
        teacher, dataset = ctx.parents["teacher"], ctx.parents["dataset"]
        layers = ctx.parents.get("layers")
        check_teacher_matches_dataset(teacher, dataset)
        if layers:
            check_layers_match_teacher(layers, teacher)
        start = layers or teacher
        card = make_generator_card(config, start)  # a table that does not fit is refused here, not by a worker
        spec = TrainSpec(
            label="distill-steps",
            build=partial(build, config, teacher.uri, start.uri),
            finish=partial(finish, config, ctx.run_id, ctx.artifact.uri, start.uri, ctx.parent_ids),
            dataset_uri=dataset.uri,
            scratch_uri=ctx.scratch.uri,
            seed=config.seed,
            global_batch_size=config.steps.global_batch_size,
            kind="generator",
            card=partial(_make_card, config, start),
            updates=config.updates,
            total_steps=int(config.derive_values()["total_steps"]),
            loop=config.loop,
            cluster=config.cluster,
            health=config.health,
            validation=config.validation,
            data=config.data,
            watch=("dmd_loss", "dsm_loss", "gan_loss", "d_real", "d_fake", "step_seconds"),
            expected=STEP_DISTILLATION,
            row_flops=row_flops(config, card.to_dict(), layered=card.budget is not None),
        )
        launch_training(spec, ctx.run, ctx.trial)
        ctx.save_plot(
            "losses.png", lambda: plots.plot_losses({name: ctx.run.read_history(name) for name in PLOTTED_METRICS})
        )
        ctx.save_plot("noise.png", lambda: plots.plot_noise_distributions(config.steps))

    return run_stage("distill-steps", config, execute, register_as=config.name, resume=resume, trial=trial)


def make_generator_card(config: StepsStage, start: Artifact) -> ModelCard:
    """What the generator must remember: latents and network of the model it starts as, and its own layer budget.

    Raises:
        UserError: the budget does not fit the depth.
    """
    card = ModelCard(**start.manifest["model"])
    budget_config = config.steps.budget or (PrestoLSBudget() if card.budget else None)
    if budget_config is None:
        return card
    budget = LayerBudget.from_distribution(config.steps.p_gen, budget_config, depth=card.depth)
    if card.budget:  # which blocks are skipped, and what the network is told, stay as they were trained
        budget = replace(budget, mode=card.budget.mode, conditioned=card.budget.conditioned)
    return replace(card, layer_budget=budget.to_dict())


def _make_card(config: StepsStage, start: Artifact, dataset: LatentDataset) -> ModelCard:
    return make_generator_card(config, start)


def build(
    config: StepsStage,
    teacher_uri: str,
    start_uri: str,
    dataset: LatentDataset,
    parallel: Parallel,
    dtype: torch.dtype | None,
) -> StepDistillation:
    """The algorithm, on every worker."""
    folder = open_folder(teacher_uri)
    teacher, card = load_model(folder, read_artifact(folder).manifest)
    start_folder, start = open_folder(start_uri), None
    budget = make_generator_card(config, read_artifact(start_folder)).budget
    if start_uri != teacher_uri:
        start, _ = load_model(start_folder, read_artifact(start_folder).manifest)
    elif budget:  # dropping blocks of the base itself
        start = teacher.with_budget(budget)
    return StepDistillation(
        config.steps,
        teacher.to(parallel.device),
        sigma_data=card.sigma_data,
        start=start.to(parallel.device) if start else None,
        budget=budget,
        parallel=parallel,
        autocast_dtype=dtype,
    )


def finish(
    config: StepsStage,
    run_id: str,
    uri: str,
    start_uri: str,
    parents: dict[str, str],
    dataset: LatentDataset,
    state: TrainState,
    details: dict[str, Any],
) -> None:
    """Commit the averaged generator with its card."""
    commit_artifact(
        open_folder(uri),
        kind="generator",
        artifact_id=run_id,
        config_yaml=settings_to_yaml(config),
        parents=parents,
        files=serialize_network(state.emas["generator"].network),
        details={
            "model": make_generator_card(config, read_artifact(open_folder(start_uri))).to_dict(),
            "training": {"generator_step": state.generator_step, "total_step": state.total_step},
            **dataset.exclusion_manifest,
            **details,
        },
    )
