"""Costs counted without data are those of the network that computes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from pipelines.train.step_flops import row_flops
from presto_core.config.diffusers_network import DiffusersNetworkConfig
from presto_core.config.loader import load_config
from presto_core.config.schema import LayersStage
from presto_core.models.teacher_import import make_test_inputs
from presto_core.networks.diffusers_network import DiffusersNetwork
from presto_core.networks.flops import LatentShape
from presto_core.networks.meta_costs import count_costs, count_saved_bytes
from presto_core.networks.table import kind_of
from tests.core.test_layer_budget import flops
from tests.support.tiny_teachers import CHANNELS, TEXT_DIM, TOKENS, TRANSFORMERS

PROJECTIONS: dict[str, dict[str, Any]] = {
    "StableAudioDiTModel": {
        "text_encoder_dim": TEXT_DIM,
        "conditioning_dim": TEXT_DIM,
        "min_value": 0,
        "max_value": 512,
    },
    "StableAudio3DiTModel": {"output_dim": TEXT_DIM, "fourier_dim": 8},
    "AceStepTransformer1DModel": {
        "text_hidden_dim": TEXT_DIM,
        "hidden_size": 64,
        "timbre_hidden_dim": CHANNELS,
        "fixed_tokens": 11,
    },
    "LongCatAudioDiTTransformer": {"text_dim": TEXT_DIM},
}
FRAMES = 32  # of the test inputs


def make_config(name: str) -> DiffusersNetworkConfig:
    return DiffusersNetworkConfig(
        transformer_class=name, transformer=TRANSFORMERS[name], conditioner=PROJECTIONS[name], text_tokens=TOKENS,
        clip_seconds=1.0,
    )  # fmt: skip


@pytest.mark.parametrize("name", PROJECTIONS)
def test_costs_are_those_of_a_forward_pass(name: str):
    config = make_config(name)
    network = DiffusersNetwork(config)
    inputs, costs = make_test_inputs(network), count_costs(config, FRAMES)

    @torch.no_grad()
    def run(budget: int) -> None:
        network(inputs.x, torch.full((1,), 0.5), inputs.cond, budget)

    for budget in (4, 2):
        assert flops(partial(run, budget)) == budget * costs.block_flops + costs.outer_flops
    parameters = sum(p.numel() for p in network.parameters())
    assert parameters == network.depth * costs.block_parameters + costs.outer_parameters
    one, two, three = (count_costs(config, times * FRAMES).block_flops for times in (1, 2, 3))
    assert three - two > two - one > 0  # attention grows with the square


@pytest.mark.parametrize("name", PROJECTIONS)
def test_the_work_of_a_row_is_known(name: str):
    config = make_config(name)
    card = {
        "network": config.model_dump(), "channels": CHANNELS, "frames": FRAMES,
        "text": {"dim": TEXT_DIM, "max_tokens": TOKENS},
    }  # fmt: skip
    shape, kind, costs = LatentShape(CHANNELS, FRAMES, TEXT_DIM, TOKENS), kind_of(config), count_costs(config, FRAMES)
    assert (kind.block_flops(config, shape), kind.outer_flops(config, shape)) == (costs.block_flops, costs.outer_flops)
    layers = load_config(LayersStage, overrides={"layers.budget.kind": "full"})
    assert row_flops(layers, card) == 3 * (4 * costs.block_flops + costs.outer_flops)
    bare = config.model_copy(update={"conditioner": {}})  # conditions are its own arguments: not known
    assert kind.block_flops(bare, shape) == 0
    with pytest.raises(ValueError, match=name):
        count_costs(bare, FRAMES)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_what_autograd_keeps_is_half_in_bf16_and_leaves_no_tensor_without_data(name: str):
    config = make_config(name)
    full, half = (count_saved_bytes(config, FRAMES, bf16=bf16) for bf16 in (False, True))
    assert 0.4 * full[0] < half[0] < 0.9 * full[0]
    network = DiffusersNetwork(config)
    inputs = make_test_inputs(network)
    with torch.no_grad():
        assert network(inputs.x, torch.full((1,), 0.5), inputs.cond).isfinite().all()
