"""Stage: latents -> teacher, trained with dropped conditions so that it can be guided."""

from __future__ import annotations

import torch

from pipelines.data.dataset import SIGMA_DATA, LatentDataset
from pipelines.data.latent_spectrum import measure_spectrum
from pipelines.stages.training import run_training
from pipelines.train.resume import ResumeOptions
from pipelines.train.spec import Models, TrainingDefinition
from pipelines.train.sweep_hook import Trial
from presto_core.artifacts.manifest import Artifact
from presto_core.config.schema import TeacherStage
from presto_core.models.model_card import ModelCard
from presto_core.networks.network import Network
from presto_core.training.health import TEACHER
from presto_core.training.parallel import Parallel
from presto_core.training.teacher import TeacherTraining

SPECTRUM_ROWS = 4096  # training rows, evenly from all, that the spectrum of the Gaussian skip is estimated from


def run(config: TeacherStage, resume: ResumeOptions = ResumeOptions(), trial: Trial | None = None) -> Artifact:
    """Train a teacher; see `run_training`."""
    return run_training(STAGE, config, resume, trial)


def make_card(config: TeacherStage, models: Models, dataset: LatentDataset) -> ModelCard:
    """What a model trained on this data set must remember of it."""
    info, network = dataset.info, config.network
    if network.beat_heads and not network.frame_rate:
        rate = info["codec"]["sample_rate_hz"] / info["codec"]["hop"]
        network = network.model_copy(update={"frame_rate": rate})
    return ModelCard(
        network=network.model_dump(mode="json"),
        sigma_data=SIGMA_DATA,
        codec=info["codec"],
        text=info["text"],
        **info["latents"],
    )


def make_algorithm(
    config: TeacherStage, models: Models, dataset: LatentDataset, parallel: Parallel, dtype: torch.dtype | None
) -> TeacherTraining:
    """The algorithm, on every worker."""
    card = make_card(config, models, dataset)
    network = card.build_network().to(parallel.device)
    fit_gaussian_skip(network, card, dataset)
    return TeacherTraining(config.teacher, network, sigma_data=SIGMA_DATA, parallel=parallel, autocast_dtype=dtype)


def fit_gaussian_skip(network: Network, card: ModelCard, dataset: LatentDataset) -> None:
    """Set the spectrum of a network's Gaussian skip, if it has one, from rows of the training split."""
    skip = getattr(network, "gaussian_skip", None)
    if skip is not None:
        skip.fit(measure_spectrum(dataset, card, at_least=SPECTRUM_ROWS))


STAGE = TrainingDefinition(
    name=TeacherStage.NAME,
    kind="teacher",
    make_card=make_card,
    make_algorithm=make_algorithm,
    progress_metrics=("dsm_loss", "grad_norm", "step_seconds"),
    plotted_metrics=("dsm_loss", "grad_norm", *(f"dsm_loss/q{i}" for i in (1, 2, 3, 4))),
    health=TEACHER,
)
