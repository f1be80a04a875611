"""Stage: base model, or a layer-distilled one, -> few-step generator by Presto-S or Presto-LS."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from pipelines.data.dataset import LatentDataset
from pipelines.evaluate import plots
from pipelines.registry.compatibility import require_layers_of, require_teacher_of
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
from presto_core.config.layers import PrestoLSBudget
from presto_core.config.loader import settings_yaml
from presto_core.config.schema import StepsStage
from presto_core.models.model_card import (
    ModelCard,
    load_model,
    weights_file,
)
from presto_core.networks.layer_budget import LayerBudget
from presto_core.training.health import STEP_DISTILLATION
from presto_core.training.parallel import Parallel
from presto_core.training.state import TrainState
from presto_core.training.step_distillation import StepDistillation

PLOTTED = (
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


def run(config: StepsStage, resume: Resume = Resume(), trial: Trial | None = None) -> Artifact:
    """Distill a base model, go on with an interrupted distillation, or find it done.

    Raises:
        UserError: teacher, layer-distilled model or dataset unknown or not made for each other, a table that does not
            fit the depth, divergence, storage full, ...
    """

    def make(place: Workplace) -> None:
        teacher, dataset = place.parents["teacher"], place.parents["dataset"]
        layers = place.parents.get("layers")
        require_teacher_of(teacher, dataset)
        if layers:
            require_layers_of(layers, teacher)
        start = layers or teacher
        card = generator_card(config, start)  # a table that does not fit is refused here, not by a worker
        job = Job(
            label="distill-steps",
            build=partial(build, config, teacher.uri, start.uri),
            finish=partial(finish, config, place.run_id, place.artifact.uri, start.uri, place.parent_ids),
            dataset_uri=dataset.uri,
            scratch_uri=place.scratch.uri,
            seed=config.seed,
            global_batch_size=config.steps.global_batch_size,
            kind="generator",
            card=partial(_card, config, start),
            updates=config.updates,
            total_steps=int(config.derived()["total_steps"]),
            loop=config.loop,
            cluster=config.cluster,
            health=config.health,
            validation=config.validation,
            data=config.data,
            watch=("dmd_loss", "dsm_loss", "gan_loss", "d_real", "d_fake", "step_seconds"),
            expected=STEP_DISTILLATION,
            row_flops=row_flops(config, card.to_dict(), layered=card.budget is not None),
        )
        run_job(job, place.run, place.trial)
        place.show("losses.png", lambda: plots.losses({name: place.run.history(name) for name in PLOTTED}))
        place.show("noise.png", lambda: plots.noise_distributions(config.steps))

    return run_stage("distill-steps", config, make, register_as=config.name, resume=resume, trial=trial)


def generator_card(config: StepsStage, start: Artifact) -> ModelCard:
    """What the generator must remember: latents and network of the model it starts as, and its own layer budget.

    Raises:
        UserError: the budget does not fit the depth.
    """
    card = ModelCard(**start.manifest["model"])
    wanted = config.steps.budget or (PrestoLSBudget() if card.budget else None)
    if wanted is None:
        return card
    budget = LayerBudget.over(config.steps.p_gen, wanted, depth=card.depth)
    if card.budget:  # which blocks are skipped, and what the network is told, stay as they were trained
        budget = replace(budget, mode=card.budget.mode, conditioned=card.budget.conditioned)
    return replace(card, layer_budget=budget.to_dict())


def _card(config: StepsStage, start: Artifact, dataset: LatentDataset) -> ModelCard:
    return generator_card(config, start)


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
    budget = generator_card(config, read_artifact(start_folder)).budget
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
        config_yaml=settings_yaml(config),
        parents=parents,
        files=weights_file(state.emas["generator"].network),
        details={
            "model": generator_card(config, read_artifact(open_folder(start_uri))).to_dict(),
            "training": {"generator_step": state.generator_step, "total_step": state.total_step},
            **dataset.left_out,
            **details,
        },
    )
