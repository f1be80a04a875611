"""Stage: base model -> few-step generator by Presto-S."""

from __future__ import annotations

from functools import partial

import torch

from pipelines import plots
from pipelines.dataset import LatentDataset
from pipelines.stage import Workplace, run_stage
from pipelines.storage import open_folder
from pipelines.worker import Job, run_job
from presto_core.config.errors import UserError
from presto_core.config.loader import to_yaml
from presto_core.config.schema import StepsStage
from presto_core.metrics.health import STEP_DISTILLATION
from presto_core.registry.manifest import Artifact, commit_artifact, read_artifact
from presto_core.training.model import ModelCard, load_model, weights_file
from presto_core.training.parallel import Parallel
from presto_core.training.state import TrainState
from presto_core.training.steps import StepDistillation

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


def run(config: StepsStage) -> Artifact:
    """Distill a base model, go on with an interrupted distillation, or find it done.

    Raises:
        UserError: teacher or dataset unknown or not made for each other, divergence, storage full, ...
    """

    def make(place: Workplace) -> None:
        teacher, dataset = place.parents["teacher"], place.parents["dataset"]
        _require_same_latents(teacher, dataset)
        job = Job(
            label="distill-steps",
            build=partial(build, config, teacher.uri),
            finish=partial(finish, config, place.run_id, place.artifact.uri, teacher.uri, place.parent_ids),
            dataset_uri=dataset.uri,
            scratch_uri=place.scratch.uri,
            seed=config.seed,
            global_batch_size=config.steps.global_batch_size,
            total_steps=int(config.derived()["total_steps"]),
            loop=config.loop,
            cluster=config.cluster,
            watch=("dmd_loss", "dsm_loss", "gan_loss", "d_real", "d_fake", "step_seconds"),
            expected=STEP_DISTILLATION,
        )
        run_job(job, place.run)
        place.show("losses.png", plots.losses({name: place.run.history(name) for name in PLOTTED}))
        place.show("noise.png", plots.noise_distributions(config.steps))

    return run_stage("distill-steps", config, make, register_as=config.name)


def build(
    config: StepsStage, teacher_uri: str, dataset: LatentDataset, parallel: Parallel, dtype: torch.dtype | None
) -> StepDistillation:
    """The algorithm, on every worker."""
    folder = open_folder(teacher_uri)
    network, card = load_model(folder, read_artifact(folder).manifest)
    return StepDistillation(
        config.steps, network.to(parallel.device), sigma_data=card.sigma_data, parallel=parallel, autocast_dtype=dtype
    )


def finish(
    config: StepsStage,
    run_id: str,
    uri: str,
    teacher_uri: str,
    parents: dict[str, str],
    dataset: LatentDataset,
    state: TrainState,
) -> None:
    """Commit the averaged generator; its card is the teacher's, since it denoises the same latents."""
    commit_artifact(
        open_folder(uri),
        kind="generator",
        artifact_id=run_id,
        config_yaml=to_yaml(config),
        parents=parents,
        files=weights_file(state.emas["generator"].network),
        details={
            "model": ModelCard(**read_artifact(open_folder(teacher_uri)).manifest["model"]).to_dict(),
            "training": {"generator_step": state.generator_step, "total_step": state.total_step},
        },
    )


def _require_same_latents(teacher: Artifact, dataset: Artifact) -> None:
    """The base must have been trained on latents of the same codec, text encoder and statistics."""
    if teacher.kind != "teacher":
        raise UserError(f"inputs.teacher={teacher.uri} is a {teacher.kind}, not a teacher")
    model, data = teacher.manifest["model"], dataset.manifest.get("dataset", {})
    for name, there, here in (
        ("codec", model["codec"]["digest"], data.get("codec", {}).get("digest")),
        ("text encoder", model["text"]["digest"], data.get("text", {}).get("digest")),
        ("latent statistics", (model["mean"], model["std"]), _stats(data)),
    ):
        if there != here:
            raise UserError(
                f"teacher {teacher.id} and data set {dataset.id} differ in their {name}; distil on the data set "
                f"that the teacher was trained on: inputs.dataset={teacher.manifest['parents'].get('dataset')}"
            )


def _stats(data: dict[str, dict[str, list[float]]]) -> tuple[list[float] | None, list[float] | None]:
    latents = data.get("latents", {})
    return latents.get("mean"), latents.get("std")
