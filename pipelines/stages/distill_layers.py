"""Stage: teacher -> a model that runs fewer blocks where noise is high, by Presto-L or as its ASE baseline."""

from __future__ import annotations

from dataclasses import replace

import torch

from pipelines.data.dataset import LatentDataset
from pipelines.registry.compatibility import check_teacher_matches_dataset, check_whole_rows
from pipelines.stages.training import run_training
from pipelines.storage.filesystem import open_folder
from pipelines.train.resume import ResumeOptions
from pipelines.train.spec import Models, TrainingDefinition
from pipelines.train.sweep_hook import Trial
from presto_core.artifacts.manifest import Artifact
from presto_core.config.schema import LayersStage
from presto_core.models.model_card import ModelCard, load_model
from presto_core.training.health import TEACHER
from presto_core.training.layer_distillation import LayerDistillation, make_layer_budget
from presto_core.training.parallel import Parallel


def run(config: LayersStage, resume: ResumeOptions = ResumeOptions(), trial: Trial | None = None) -> Artifact:
    """Distill a teacher's layers; see `run_training`."""
    return run_training(STAGE, config, resume, trial)


def check_parents(config: LayersStage, parents: dict[str, Artifact]) -> None:
    """Refuse a teacher of other latents, or a table that does not fit its depth; raises UserError."""
    teacher = parents["teacher"]
    check_teacher_matches_dataset(teacher, parents["dataset"])
    check_whole_rows(teacher, config.data.crop_frames)
    make_layer_budget(config.layers, ModelCard(**teacher.manifest["model"]).depth)


def make_card(config: LayersStage, models: Models, dataset: LatentDataset) -> ModelCard:
    """The teacher's card, with the table it is trained with."""
    card = ModelCard(**models["teacher"].manifest["model"])
    return replace(card, layer_budget=make_layer_budget(config.layers, card.depth).to_dict())


def make_algorithm(
    config: LayersStage, models: Models, dataset: LatentDataset, parallel: Parallel, dtype: torch.dtype | None
) -> LayerDistillation:
    """The algorithm, on every worker."""
    teacher = models["teacher"]
    network, card = load_model(open_folder(teacher.uri), teacher.manifest)
    return LayerDistillation(
        config.layers,
        network.to(parallel.device),
        precondition=card.make_precondition(),
        parallel=parallel,
        autocast_dtype=dtype,
    )


STAGE = TrainingDefinition(
    name=LayersStage.NAME,
    kind="layers",
    make_card=make_card,
    make_algorithm=make_algorithm,
    progress_metrics=("dsm_loss", "self_teacher_loss", "blocks_run", "step_seconds"),
    plotted_metrics=(
        "dsm_loss",
        "self_teacher_loss",
        "grad_norm",
        "blocks_run",
        *(f"dsm_loss/q{i}" for i in (1, 2, 3, 4)),
    ),
    health=TEACHER,
    check=check_parents,
)
