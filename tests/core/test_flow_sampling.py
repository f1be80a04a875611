"""Flow models of other families: the stock scheduler's stochastic steps are our ping-pong, at 1, 2, 4 and 8 steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from presto_core.config.diffusers_network import DiffusersNetworkConfig
from presto_core.diffusion.denoiser import EDMDenoiser
from presto_core.diffusion.preconditions import Flow
from presto_core.models.flow_grid import START
from presto_core.networks.diffusers_network import DiffusersNetwork
from presto_core.networks.layer_budget import LayerBudget
from presto_core.samplers.few_step import ping_pong
from tests.support.tiny_teachers import CHANNELS, TRANSFORMERS, make_arguments, make_transformer

FRAMES, BUDGET = 12, LayerBudget(kept=(2, 3, 4), edges=(30.0, 1.0), distribution={})


@pytest.mark.parametrize("name", ["AceStepTransformer1DModel", "LongCatAudioDiTTransformer"])
def test_a_student_sampled_by_the_stock_scheduler_gives_our_samples(name: str):
    """The times are those of LongCat's pipeline, t = 1 ... 1/K; ACE-Step's takes any."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    network = DiffusersNetwork(DiffusersNetworkConfig(transformer_class=name, transformer=TRANSFORMERS[name]))
    network.transformer.load_state_dict(make_transformer(name).state_dict())
    network = network.with_budget(BUDGET).eval()
    assert network.budget_table is not None
    nn.init.normal_(network.budget_table, std=0.2, generator=torch.Generator().manual_seed(1))
    plain, scheduler = network.keep_blocks(3), FlowMatchEulerDiscreteScheduler(1, stochastic_sampling=True)
    arguments: Any = make_arguments(name, 1, FRAMES, torch.float32)

    def run(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return plain.family.call(plain.transformer, x.transpose(1, 2), time.expand(1), arguments).transpose(1, 2)

    for steps in (1, 2, 4, 8):
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
        times, rng = scheduler.sigmas[:-1].double(), torch.Generator().manual_seed(5)
        x = noise = torch.randn(1, CHANNELS, FRAMES, generator=rng)
        with torch.inference_mode():
            for time in scheduler.timesteps:
                x = scheduler.step(run(x, time), time, x, generator=rng).prev_sample
            levels, rng = (times / (1 - times)).clamp(max=START), torch.Generator().manual_seed(5)
            assert torch.equal(torch.randn(1, CHANNELS, FRAMES, generator=rng), noise)
            denoise = EDMDenoiser(network, Flow())
            ours = ping_pong(denoise, noise, levels, arguments, generator=rng, budget=lambda sigma: 3)
        torch.testing.assert_close(x, ours, rtol=0, atol=5e-5)
