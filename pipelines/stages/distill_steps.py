"""Stage: teacher, or a layer-distilled model, -> few-step generator by Presto-S or Presto-LS."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from pydantic import TypeAdapter

from pipelines.console import console
from pipelines.data.dataset import LatentDataset
from pipelines.evaluate import plots
from pipelines.registry.compatibility import check_layers_match_teacher, check_teacher_matches_dataset, check_whole_rows
from pipelines.stages.training import run_training
from pipelines.storage.filesystem import open_folder
from pipelines.train.resume import ResumeOptions
from pipelines.train.spec import Models, TrainingDefinition
from pipelines.train.sweep_hook import Trial
from presto_core.artifacts.manifest import Artifact
from presto_core.config.layers import (
    BudgetConfig,
    FullBudget,
    PrestoLBudget,
    PrestoLSBudget,
    TableBudget,
    blocks_per_bin,
    choose_generator_budget,
)
from presto_core.config.noise import NoiseConfig
from presto_core.config.schema import StepsStage
from presto_core.errors import UserError
from presto_core.models.model_card import ModelCard, load_model
from presto_core.networks.layer_budget import LayerBudget
from presto_core.training.health import STEP_DISTILLATION
from presto_core.training.parallel import Parallel
from presto_core.training.state import TrainState
from presto_core.training.step_distillation import StepDistillation


def run(config: StepsStage, resume: ResumeOptions = ResumeOptions(), trial: Trial | None = None) -> Artifact:
    """Distill a teacher's steps; see `run_training`."""
    noise_plot = {"noise.png": lambda: plots.plot_noise_distributions(config.steps)}
    return run_training(STAGE, config, resume, trial, more_plots=noise_plot)


def check_parents(config: StepsStage, parents: dict[str, Artifact]) -> None:
    """Refuse models of other latents or of another teacher, or a budget that does not fit; raises UserError."""
    check_teacher_matches_dataset(parents["teacher"], parents["dataset"])
    check_whole_rows(parents["teacher"], config.data.crop_frames)
    if "layers" in parents:
        check_layers_match_teacher(parents["layers"], parents["teacher"])
    budget = make_generator_card(config, parents).budget
    if budget and "layers" in parents:
        console.print(
            f"{STAGE.name}: the generator runs {' '.join(map(str, budget.kept))} blocks, from high noise to low, and "
            f"{parents['layers'].id} was trained for {' '.join(map(str, read_kept(parents['layers'])))}; steps.budget "
            "sets another table",
            markup=False,
        )


def settle(config: StepsStage, parents: dict[str, Artifact]) -> StepsStage:
    """Write the table of a layer-distilled model that is not the paper's into the settings, and so into the run's id.

    Runs with the paper's tables keep the ids that they had before there was a choice.
    """
    if "layers" not in parents or config.steps.budget is not None:
        return config
    budget = choose_budget(config, ModelCard(**parents["layers"].manifest["model"]))
    if isinstance(budget, PrestoLSBudget):
        return config
    return config.model_copy(update={"steps": config.steps.model_copy(update={"budget": budget})})


def choose_budget(config: StepsStage, start: ModelCard) -> BudgetConfig | None:
    """Return the budget of a generator that starts from this model, as `choose_generator_budget` does."""
    if start.budget is None:
        return config.steps.budget
    papers = blocks_per_bin(PrestoLBudget(), start.depth)
    if start.budget.distribution:  # over a few discrete levels, the paper's table has fewer bins
        noise = TypeAdapter(NoiseConfig).validate_python(start.budget.distribution)
        with suppress(UserError):  # of a distribution that never draws the paper's last bin
            papers = LayerBudget.from_distribution(noise, PrestoLBudget(), depth=start.depth).kept
    chosen = choose_generator_budget(config.steps.budget, start.budget.kept, papers_kept=papers)
    return FullBudget() if chosen == TableBudget(kept=(start.depth,)) else chosen


def read_kept(layers: Artifact) -> tuple[int, ...]:
    """Return the blocks per bin of a layer-distilled model, from high noise to low."""
    budget = ModelCard(**layers.manifest["model"]).budget
    assert budget is not None
    return budget.kept


def make_card(config: StepsStage, models: Models, dataset: LatentDataset) -> ModelCard:
    """See `make_generator_card`."""
    return make_generator_card(config, models)


def make_generator_card(config: StepsStage, models: Models) -> ModelCard:
    """What the generator must remember: latents and network of the model it starts as, and its own layer budget.

    Raises:
        UserError: the budget does not fit the depth.
    """
    card = ModelCard(**(models.get("layers") or models["teacher"]).manifest["model"])
    budget_config = choose_budget(config, card)
    if budget_config is None:
        return card
    budget = LayerBudget.from_distribution(config.steps.p_gen, budget_config, depth=card.depth)
    if card.budget:  # which blocks are skipped and whether the network is conditioned on it stay as they were trained
        budget = replace(budget, mode=card.budget.mode, conditioned=card.budget.conditioned)
    return replace(card, layer_budget=budget.to_dict())


def make_algorithm(
    config: StepsStage, models: Models, dataset: LatentDataset, parallel: Parallel, dtype: torch.dtype | None
) -> StepDistillation:
    """The algorithm, on every worker."""
    teacher, card = load_model(open_folder(models["teacher"].uri), models["teacher"].manifest)
    budget, start = make_generator_card(config, models).budget, None
    if "layers" in models:
        start, _ = load_model(open_folder(models["layers"].uri), models["layers"].manifest)
    elif budget:  # dropping blocks of the teacher itself
        start = teacher.with_budget(budget)
    return StepDistillation(
        config.steps,
        teacher.to(parallel.device),
        precondition=card.make_precondition(),
        start=start.to(parallel.device) if start else None,
        budget=budget,
        parallel=parallel,
        autocast_dtype=dtype,
    )


def describe_state(state: TrainState) -> dict[str, Any]:
    """Counters for the manifest."""
    return {"training": {"generator_step": state.generator_step, "total_step": state.total_step}}


STAGE = TrainingDefinition(
    name=StepsStage.NAME,
    kind="generator",
    make_card=make_card,
    make_algorithm=make_algorithm,
    progress_metrics=("dmd_loss", "dsm_loss", "gan_loss", "d_real", "d_fake", "step_seconds"),
    plotted_metrics=(
        "dsm_loss",
        "dmd_loss",
        "gan_loss",
        "d_real",
        "d_fake",
        "discriminator_loss",
        "dmd_grad_norm",
        "gan_grad_norm",
        "x0_std",
    ),
    health=STEP_DISTILLATION,
    settle=settle,
    check=check_parents,
    describe_state=describe_state,
)
