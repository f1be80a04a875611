"""Noise levels chosen on the validation split and stored with a generator; the held-out loss at a budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.data.dataset import LatentDataset
from pipelines.evaluate.schedule_choice import choose_schedules, list_schedules, to_card_entry
from pipelines.evaluate.validator import Validator
from pipelines.inference.model import Model, open_model, sample_generator
from pipelines.storage.filesystem import open_folder
from pipelines.workflows.heldout_loss import _replicate_mean, measure_heldout_loss
from presto_core.artifacts.manifest import commit_artifact
from presto_core.config.layers import FullBudget, TableBudget
from presto_core.config.loader import load_config
from presto_core.config.noise import LogNormalNoise
from presto_core.config.sampling import ScheduleConfig
from presto_core.config.schema import EvaluateStage, GenerateStage
from presto_core.config.sections import NetworkConfig
from presto_core.config.validation import ValidationConfig
from presto_core.models.model_card import ModelCard, serialize_network
from presto_core.networks.layer_budget import LayerBudget
from tests.support.synthetic_dataset import make_dataset

DEPTH = 3
STORED = {"4": {"sigma_min": 0.01, "sigma_max": 20.0, "rho": 3.0}}


@pytest.fixture
def dataset(tmp_path: Path) -> LatentDataset:
    return make_dataset(str(tmp_path / "data"))


def commit_model(dataset: LatentDataset, uri: Path, *, kind: str = "generator", scale: float = 0.2, **card: Any) -> str:
    """A model with random weights for the data set's latents, whose output has about this scale."""
    info = dataset.info
    latents = info["latents"]
    shape = {
        "channels": latents["channels"],
        "frames": latents["frames"],
        "mean": latents["mean"],
        "std": latents["std"],
    }
    network = NetworkConfig(dim=16, depth=DEPTH, heads=2, patch=2).model_dump()
    made = ModelCard(network=network, sigma_data=1.0, codec=info["codec"], text=info["text"], **shape)
    made = replace(made, **card)
    torch.manual_seed(0)
    net = made.build_network()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(scale * torch.randn_like(parameter) / max(1, parameter.shape[-1]) ** 0.5)
    commit_artifact(
        open_folder(str(uri)), kind=kind, artifact_id="1" * 16, config_yaml="", parents={},
        files=serialize_network(net), details={"model": made.to_dict()},
    )  # fmt: skip
    return str(uri)


def sample(model: Model, steps: int, schedule: ScheduleConfig | None) -> torch.Tensor:
    rng = torch.Generator().manual_seed(3)
    noise = model.draw_noise(2, generator=rng)
    return sample_generator(model, noise, None, steps=steps, schedule=schedule, generator=rng)


# --- stored schedules


def test_a_generator_samples_with_the_schedule_that_it_stores_unless_one_is_given(
    dataset: LatentDataset, tmp_path: Path
):
    model = open_model(commit_model(dataset, tmp_path / "model", few_step_schedules=STORED))
    stored, default = ScheduleConfig(**STORED["4"]), ScheduleConfig()
    assert torch.equal(sample(model, 4, None), sample(model, 4, stored))
    assert not torch.equal(sample(model, 4, None), sample(model, 4, default))  # the default one can be given
    assert torch.equal(sample(model, 2, None), sample(model, 2, default))  # none is stored for two steps


def test_a_model_without_schedules_has_the_manifest_it_had_before(dataset: LatentDataset, tmp_path: Path):
    model = open_model(commit_model(dataset, tmp_path / "model"))
    assert "few_step_schedules" not in model.artifact.manifest["model"]
    assert model.card.schedule_at(4) == ScheduleConfig()


def test_a_schedule_that_is_given_makes_another_report_and_none_the_report_of_before():
    none, given = load_config(EvaluateStage), load_config(EvaluateStage, None, ["evaluate.schedule.rho=7"])
    assert none.evaluate.schedule is None
    assert given.evaluate.schedule == ScheduleConfig()
    assert none.result_config()["evaluate"]["schedule"] == {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
    assert none.run_id() != given.run_id()
    assert load_config(GenerateStage, None, ["generate.schedule.rho=3"]).generate.schedule == ScheduleConfig(rho=3)


# --- choice


def test_the_default_is_tried_first_and_rho_only_where_it_matters():
    schedules = list_schedules(4, rhos=(3.0, 7.0), sigmas_max=(40.0, 80.0))
    assert schedules[0] == ScheduleConfig()
    assert len(schedules) == len(set(schedules)) == 4
    assert {s.sigma_max for s in list_schedules(1, rhos=(3.0, 7.0), sigmas_max=(40.0, 80.0))} == {40.0, 80.0}
    assert len(list_schedules(1, rhos=(3.0, 7.0), sigmas_max=(40.0, 80.0))) == 2


def test_the_chosen_schedule_has_the_lowest_validation_mmd_of_those_tried(dataset: LatentDataset, tmp_path: Path):
    uri = commit_model(dataset, tmp_path / "model")
    validation = ValidationConfig(samples=8, reference_samples=8, batch_size=4, embedding="latents")
    tried = {"rhos": (2.0, 7.0), "sigmas_max": (5.0, 80.0)}
    found = choose_schedules(uri, dataset.uri, steps=(1, 2), validation=validation, **tried)
    assert [choice.steps for choice in found] == [1, 2]
    for choice in found:
        schedules = list_schedules(choice.steps, **tried)
        distances = {}
        for schedule in schedules:
            settings = validation.model_copy(update={"steps": choice.steps, "schedule": schedule})
            distances[schedule] = Validator(settings, dataset.uri)(uri)["mmd"]
        assert choice.distance == min(distances.values()) == distances[choice.schedule]
        assert choice.default_distance == distances[ScheduleConfig()]
        assert choice.tried == len(schedules)
    card = ModelCard(**open_model(uri).card.to_dict(), few_step_schedules=to_card_entry(found))
    assert card.schedule_at(2) == found[1].schedule


# --- the loss at the model's own budget


def measure(dataset: LatentDataset, uri: str) -> tuple[float, tuple[float, ...]]:
    found = measure_heldout_loss(uri, dataset, LogNormalNoise(mean=0.3, std=1.4), groups=4)
    return found.value, found.generated


def test_the_loss_is_that_of_the_blocks_that_run(dataset: LatentDataset, tmp_path: Path):
    """A table that keeps every block is full depth; one that skips blocks is another denoiser."""

    def commit(name: str, budget: LayerBudget | None) -> str:
        table = budget.to_dict() if budget else None
        return commit_model(dataset, tmp_path / name, kind="layers", scale=1.0, layer_budget=table)

    def table(config: FullBudget | TableBudget) -> LayerBudget:
        return LayerBudget.from_distribution(LogNormalNoise(), config, depth=DEPTH, conditioned=False)

    full, _ = measure(dataset, commit("no table", None))
    assert measure(dataset, commit("full", table(FullBudget())))[0] == pytest.approx(full, rel=1e-5)
    assert measure(dataset, commit("half", table(TableBudget(kept=(1, 2)))))[0] != pytest.approx(full, rel=1e-4)


def test_without_a_trained_output_the_loss_is_about_one_and_the_same_each_time(dataset: LatentDataset, tmp_path: Path):
    """The loss weight makes it 1 for a network that outputs nothing, on latents of unit variance."""
    uri = commit_model(dataset, tmp_path / "model", kind="teacher", scale=0.0)
    value, _ = measure(dataset, uri)
    assert value == pytest.approx(1.0, abs=0.2)
    assert measure(dataset, uri)[0] == value


def test_groups_of_tracks_are_left_out_in_turn():
    losses, tracks = np.array([1.0, 2.0, 3.0, 6.0]), np.array(["a", "a", "b", "c"])
    found = _replicate_mean(losses, tracks, 3)
    assert found.value == 3.0
    assert sorted(found.generated) == [2.0, 3.0, 4.5]  # without c, without b, without a
