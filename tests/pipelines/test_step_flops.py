"""FLOPs counted from a configuration equal those that torch counts in real steps."""

from __future__ import annotations

import pytest
import torch

from pipelines.presets.resolve import PRESETS
from pipelines.train.step_flops import StageFlops, count_stage_flops
from presto_core.config.layers import PrestoLSBudget
from presto_core.config.loader import load_config
from presto_core.config.schema import IngestStage, LayersStage, StepsStage, TeacherStage
from presto_core.config.sections import NetworkConfig
from presto_core.config.stage import StageConfig
from presto_core.networks.dit import DiT
from presto_core.networks.flops import LatentShape
from presto_core.networks.layer_budget import LayerBudget
from presto_core.training.layer_distillation import LayerDistillation
from presto_core.training.state import Algorithm, Batch, Cursor, make_step_rng
from presto_core.training.step_distillation import StepDistillation
from presto_core.training.teacher import TeacherTraining
from tests.core.test_flops import make_conditions
from tests.core.test_layer_budget import flops

NETWORK = NetworkConfig(dim=64, depth=6, heads=2, patch=2)
SHAPE = LatentShape(channels=16, frames=64, text_dim=32, text_tokens=8)
SMALL_HEAD = {"steps.gan.head_layers": 1, "steps.gan.head_channels": 8, "steps.fake_updates_per_generator_update": 1}


def batch(rows: int) -> Batch:
    return Batch(torch.randn(rows, SHAPE.channels, SHAPE.frames), make_conditions(rows, SHAPE), Cursor())


def steps_algorithm(config: StepsStage, net: DiT, *, layered: bool) -> Algorithm:
    kind = config.steps.budget or (PrestoLSBudget() if layered else None)
    budget = LayerBudget.from_distribution(config.steps.p_gen, kind, depth=NETWORK.depth) if kind else None
    start = net.with_budget(budget) if budget else None
    return StepDistillation(config.steps, net, sigma_data=1.0, start=start, budget=budget)


def algorithm_of(config: StageConfig, *, layered: bool) -> Algorithm:
    net = DiT(NETWORK, channels=SHAPE.channels, text_dim=SHAPE.text_dim)
    if isinstance(config, TeacherStage):
        return TeacherTraining(config.teacher, net, sigma_data=1.0)
    if isinstance(config, LayersStage):
        return LayerDistillation(config.layers, net, sigma_data=1.0)
    assert isinstance(config, StepsStage)
    return steps_algorithm(config, net, layered=layered)


@pytest.mark.parametrize(
    ("stage", "overrides", "layered"),
    [
        (TeacherStage, {}, False),
        # torch's counter fails on the embedding of a budget that is the same for all rows
        (LayersStage, {"layers.budget_conditioning": False}, False),
        (LayersStage, {"layers.self_teacher_weight": 0}, False),
        (StepsStage, SMALL_HEAD, False),
        (StepsStage, SMALL_HEAD, True),
        (StepsStage, SMALL_HEAD | {"steps.guidance_scale": 3, "steps.gan.generator_weight": 0}, False),
        (StepsStage, SMALL_HEAD | {"steps.gan.r1_weight": 0.1, "steps.gan.kind": "relativistic"}, False),
        (StepsStage, SMALL_HEAD | {"steps.budget.kind": "uniform", "steps.budget.kept": 2}, False),
        (StepsStage, SMALL_HEAD | {"steps.shared_taps": True}, False),
        (StepsStage, SMALL_HEAD | {"steps.shared_taps": True, "steps.gan.r1_weight": 0.1}, False),
    ],
)
def test_flops_of_every_phase(stage: type[StageConfig], overrides: dict[str, object], layered: bool):
    """Within 6 %: the algorithm draws budgets per row, the count averages them, and backward passes skip the input."""
    config = load_config(stage, None, overrides)
    work, algorithm, rows = (
        count_stage_flops(config, NETWORK.depth, layered=layered),
        algorithm_of(config, layered=layered),
        32,
    )
    for phase in work.phases:  # critic, then generator, as the algorithm does them
        rng = make_step_rng(0, total_step=algorithm.state.total_step)
        counted = flops(lambda rng=rng: algorithm.update(batch(rows), generator=rng))
        algorithm.state.total_step += 1
        assert counted == pytest.approx(rows * phase.flops(NETWORK, SHAPE), rel=0.06), phase.name


@pytest.mark.parametrize("preset", ["demo", "paper"])
def test_shares_of_phases_are_of_all_steps(preset: str):
    for stage in (TeacherStage, LayersStage, StepsStage):
        config = load_config(stage, preset, preset_folder=PRESETS)
        work: StageFlops = count_stage_flops(config, 28)
        assert sum(phase.share for phase in work.phases) == pytest.approx(1)
        assert work.total_steps * work.global_batch_size == config.derive_values()["rows_seen"]


def test_a_stage_that_does_not_train_is_refused():
    with pytest.raises(TypeError, match="IngestStage"):
        count_stage_flops(IngestStage(), 2)
