"""What an evaluation measures on models: every part of a clip from prompt to audio, on real encoder and codec."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines.evaluate.latency import _add_cold_parts, describe_parts, measure_latency_and_blocks
from pipelines.evaluate.systems import EvaluatedSystem
from pipelines.inference.model import Model
from presto_core.artifacts.manifest import Artifact
from presto_core.config.loader import load_config
from presto_core.config.schema import EvaluateStage
from presto_core.diffusion.denoiser import EDMDenoiser
from presto_core.metrics.latency import MIB
from tests.support.pretrained_models import make_card
from tests.support.synthetic_dataset import make_dataset

FRAMES, TOKENS, DEPTH = 16, 8, 2
NETWORK = {"kind": "dit", "depth": DEPTH, "dim": 32, "heads": 2, "patch": 2}
Costs = dict[str, dict[str, float]]


def make_model(kind: str) -> Model:
    """An untrained network of the shape that the shipped codec and text encoder need."""
    card = make_card(NETWORK, frames=FRAMES, tokens=TOKENS)
    network = card.build_network().eval().requires_grad_(False)
    artifact = Artifact("0" * 16, kind, "", {})
    return Model(artifact, card, network, EDMDenoiser(network, card.sigma_data), torch.device("cpu"))


TEACHER = EvaluatedSystem("teacher euler 4 w=2", "teacher", 4, 8, "teacher", "teacher euler", "euler", 2.0)
ONE = EvaluatedSystem("S 1", "generator", 1, 1, "generator", "S")
FOUR = EvaluatedSystem("S 4", "generator", 4, 4, "generator", "S")


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return {"teacher": make_model("teacher"), "generator": make_model("generator")}


@pytest.fixture(scope="module")
def costs(models: dict[str, Model], tmp_path_factory: pytest.TempPathFactory) -> Costs:
    config = load_config(EvaluateStage, None, {"evaluate.latency_batch": 3, "cluster.torch_threads": 1})
    dataset = make_dataset(str(tmp_path_factory.mktemp("data")), held_out_rows=2)  # fewer prompts than the batch
    return measure_latency_and_blocks(config, [TEACHER, ONE, FOUR], models, dataset.uri)


# over 10 s while other work uses the cores: imports transformers, and every system is measured for seconds
def test_blocks_are_those_that_ran_with_guidance_counted_twice(costs: Costs):
    assert {name: cost["blocks_run"] for name, cost in costs.items()} == {
        TEACHER.name: 2 * 4 * DEPTH,
        ONE.name: DEPTH,
        FOUR.name: 4 * DEPTH,
    }


def test_the_median_total_lies_between_its_largest_part_and_the_slowest_clip(costs: Costs):
    for cost in costs.values():
        assert cost["text_ms"] > 0
        assert cost["decode_ms"] > 0
        assert max(cost["text_ms"], cost["latency_ms"], cost["decode_ms"]) < cost["total_ms"] <= cost["total_p95_ms"]
        assert cost["latency_ms"] <= cost["latency_p95_ms"]


def test_each_row_has_its_number_of_calls(costs: Costs):
    for cost in costs.values():
        assert 3 <= cost["calls"] <= 20
        assert 1 <= cost["batch_calls"] <= 5
        assert cost["batch_total_ms"] > 0


def test_real_time_factor_is_seconds_of_music_by_seconds_of_the_whole_call(costs: Costs):
    for cost in costs.values():
        assert cost["clip_seconds"] == pytest.approx(FRAMES * 2048 / 44100)
        assert cost["real_time_factor"] == pytest.approx(cost["clip_seconds"] / (cost["total_ms"] / 1e3))


def test_only_the_first_system_of_each_model_is_cold(costs: Costs):
    assert {name for name, cost in costs.items() if "cold_ms" in cost} == {TEACHER.name, ONE.name}


def test_a_later_models_cold_clip_counts_the_processs_first_text_and_decoding():
    first = {"text": 100.0, "network": 50.0, "decode": 200.0, "total": 350.0}
    later = {"text": 5.0, "network": 30.0, "decode": 20.0, "total": 55.0}
    assert _add_cold_parts({}, first) == 350.0
    assert _add_cold_parts({"teacher": first}, later) == 100.0 + 30.0 + 200.0


def test_peak_memory_holds_the_weights(costs: Costs, models: dict[str, Model]):
    for system in (TEACHER, ONE, FOUR):
        weights = sum(p.numel() * 4 for p in models[system.model].network.parameters()) / MIB
        assert weights < costs[system.name]["peak_memory_mb"] < weights + 1000


def test_every_part_names_the_hardware_that_runs_it(models: dict[str, Model]):
    found = describe_parts(models)
    assert list(found) == ["text", "network", "decode"]
    assert all(part["threads"] == torch.get_num_threads() for part in found.values())


def test_a_data_set_of_former_times_is_read_from_its_held_out_rows(models: dict[str, Model], tmp_path: Path):
    config = load_config(EvaluateStage, None, {"evaluate.latency_batch": 1, "cluster.torch_threads": 1})
    dataset = make_dataset(str(tmp_path), splits=("held_out",))
    assert measure_latency_and_blocks(config, [ONE], models, dataset.uri)[ONE.name]["blocks_run"] == DEPTH
