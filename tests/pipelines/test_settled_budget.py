"""LS by hand and in a flow: the same table of blocks, in the settings and so in the id of the run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.stages.distill_steps import choose_budget, make_generator_card, settle
from pipelines.workflows.demo import load_flow_configs
from presto_core.artifacts.manifest import Artifact
from presto_core.config.layers import (
    BudgetConfig,
    FullBudget,
    PrestoLBudget,
    PrestoLSBudget,
    TableBudget,
    UniformBudget,
)
from presto_core.config.noise import GridNoise, LogNormalNoise, NoiseDistribution
from presto_core.config.schema import StepsStage
from presto_core.config.sections import NetworkConfig
from presto_core.networks.layer_budget import LayerBudget
from tests.support.pretrained_models import make_card

DEPTH = 6
MILD = TableBudget(kept=(4, 5, 5, 6, 6))


def make_layers(budget: BudgetConfig, noise: NoiseDistribution) -> Artifact:
    network = NetworkConfig(dim=16, depth=DEPTH, heads=2, patch=2).model_dump(mode="json")
    table = LayerBudget.from_distribution(noise, budget, depth=DEPTH)
    card = replace(make_card(network), layer_budget=table.to_dict())
    return Artifact("a" * 16, "layers", "nowhere", {"model": card.to_dict()})


@pytest.mark.parametrize("noise", [LogNormalNoise(), GridNoise(num_steps=4)])
def test_a_model_with_the_papers_table_gives_the_papers_table_and_the_id_that_it_always_had(noise: NoiseDistribution):
    config, layers = StepsStage(), make_layers(PrestoLBudget(), noise)
    assert settle(config, {"layers": layers}) is config
    expected = LayerBudget.from_distribution(config.steps.p_gen, PrestoLSBudget(), depth=DEPTH)
    budget = make_generator_card(config, {"layers": layers}).budget
    assert budget is not None
    assert budget.kept == expected.kept


@pytest.mark.parametrize("budget", [MILD, UniformBudget(kept=3), FullBudget()])
def test_a_flow_and_the_command_by_hand_give_the_same_settings(budget: BudgetConfig):
    by_hand = settle(StepsStage(), {"layers": make_layers(budget, LogNormalNoise())})
    kind, *rest = budget.model_dump().items()
    written = ", ".join(
        f"{name}: {list(value) if isinstance(value, tuple) else value}" for name, value in (kind, *rest)
    )
    in_flow = load_flow_configs("from_scratch", [f"layers.budget={{{written}}}"])["LS"]
    assert isinstance(in_flow, StepsStage)
    assert by_hand.steps.budget == in_flow.steps.budget is not None
    assert by_hand.run_id({}) != StepsStage().run_id({})
    assert settle(by_hand, {"layers": make_layers(PrestoLBudget(), LogNormalNoise())}) is by_hand


def test_without_a_layer_distilled_model_nothing_is_added():
    config = StepsStage()
    assert settle(config, {}) is config
    assert choose_budget(config, make_card()) is None
