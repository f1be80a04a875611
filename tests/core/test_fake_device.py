"""Few-step sampling on a CUDA device, without a GPU: no tensor of another device, and no wait for the device."""

from __future__ import annotations

import pytest
import torch

from presto_core.config.layers import PrestoLBudget
from presto_core.config.sections import LayersConfig, NetworkConfig
from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import EDMDenoiser
from presto_core.networks.dit import DiT
from presto_core.networks.layer_budget import LayerBudget
from presto_core.samplers.few_step import ping_pong
from presto_core.samplers.schedule import few_step_sigmas
from presto_core.training.layer_distillation import make_layer_budget
from tests.support.fake_device import CUDA, fake_cuda

CHANNELS, FRAMES, ROWS, TEXT_DIM, TOKENS = 64, 32, 4, 8, 3
NETWORK = NetworkConfig(dim=32, depth=4, heads=2)


def make_network(*, bins: int = 0, budget: LayerBudget | None = None, beat_heads: int = 0) -> DiT:
    config = NETWORK.model_copy(update={"spectrum_bins": bins, "beat_heads": beat_heads, "frame_rate": 20.0})
    with CUDA:
        return DiT.for_budget(config, channels=CHANNELS, text_dim=TEXT_DIM, budget=budget)


def make_cond(rows: int = ROWS) -> Conditioning:
    with CUDA:
        return Conditioning(
            pooled=torch.randn(rows, TEXT_DIM),
            tokens=torch.randn(rows, TOKENS, TEXT_DIM),
            mask=torch.ones(rows, TOKENS, dtype=torch.bool),
            tempo_bpm=torch.full((rows,), 100.0),
            key=torch.zeros(rows, dtype=torch.int64),
            keep=torch.ones(rows, dtype=torch.bool),
        )


def make_budget() -> LayerBudget:
    return make_layer_budget(LayersConfig(budget=PrestoLBudget()), NETWORK.depth)


@pytest.mark.parametrize("beat_heads", [0, 1])
@pytest.mark.parametrize("with_budget", [False, True])
def test_few_steps_never_wait(with_budget: bool, beat_heads: int, monkeypatch: pytest.MonkeyPatch):
    budget = make_budget() if with_budget else None
    with fake_cuda(monkeypatch) as host, torch.inference_mode():
        denoise = EDMDenoiser(make_network(budget=budget, beat_heads=beat_heads), 1.0)
        noise = torch.randn(1, CHANNELS, FRAMES, device=CUDA)
        sigmas = few_step_sigmas(4, sigma_min=0.002, sigma_max=80.0, rho=7.0)
        blocks_at = budget.blocks_at if budget else None
        x0 = ping_pong(denoise, noise, sigmas, make_cond(1), generator=torch.Generator(CUDA), budget=blocks_at)
    assert x0.device == CUDA
    assert not host.syncs


def test_a_generator_of_the_cpu_does_not_draw_for_the_device(monkeypatch: pytest.MonkeyPatch):
    """The suite sees what failed before: noise of a model on a GPU, drawn by a generator of the CPU."""
    with fake_cuda(monkeypatch), pytest.raises(AssertionError, match="generator of cpu"):
        torch.randn(3, generator=torch.Generator(), device=CUDA)
