"""Presto-S on a 2-D mixture of two Gaussians: the distilled generator fits both modes in one and two steps."""

import copy
from typing import Any

import pytest
import torch

from presto_core.config.sections import GanConfig, LoopConfig, NetworkConfig, OptimConfig, StepsConfig, TeacherConfig
from presto_core.diffusion.conditioning import UNKNOWN_KEY, Conditioning
from presto_core.diffusion.denoiser import EDMDenoiser
from presto_core.metrics.distances import mmd
from presto_core.networks.dit import DiT
from presto_core.samplers.edm import dpmpp_2m
from presto_core.samplers.few_step import ping_pong
from presto_core.samplers.schedule import few_step_sigmas, karras_sigmas
from presto_core.training.loop import train
from presto_core.training.state import Batch, Cursor
from presto_core.training.step_distillation import StepDistillation
from presto_core.training.teacher import TeacherTraining

SAMPLES = 1000
LEVELS = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
LOOP = LoopConfig(log_every=1000, checkpoint_every=10_000)


def mixture(n: int, rng: torch.Generator) -> torch.Tensor:
    """[n, 2, 1]: modes at (0.9, -0.45) and (-0.9, 0.45), standard deviation 0.25, total about 0.75."""
    sign = torch.where(torch.rand(n, 1, generator=rng) < 0.5, -1.0, 1.0)
    centre = torch.cat([0.9 * sign, -0.45 * sign], dim=1)
    return (centre + 0.25 * torch.randn(n, 2, generator=rng))[:, :, None]


def unconditional(n: int) -> Conditioning:
    return Conditioning(
        pooled=torch.zeros(n, 2),
        tokens=torch.zeros(n, 1, 2),
        mask=torch.zeros(n, 1, dtype=torch.bool),
        tempo_bpm=torch.full((n,), torch.nan),
        key=torch.full((n,), UNKNOWN_KEY),
        keep=torch.ones(n, dtype=torch.bool),
    )


def stream(size: int = 128):
    row = 0
    while True:
        row += size
        yield Batch(mixture(size, torch.Generator().manual_seed(row)), unconditional(size), Cursor(0, row))


@pytest.fixture(scope="module")
def teacher() -> DiT:
    torch.manual_seed(0)
    net = DiT(NetworkConfig(dim=32, depth=2, heads=2, patch=1, mlp_ratio=4), channels=2, text_dim=2)
    optim = OptimConfig(learning_rate=3e-3, warmup_steps=20, decay="cosine")
    algorithm = TeacherTraining(TeacherConfig(steps=300, optim=optim, ema_decay=0.99), net, sigma_data=0.75)
    train(algorithm, stream(), seed=0, config=LOOP)
    network = algorithm.state.emas["teacher"].network
    assert isinstance(network, DiT)
    return network


@torch.no_grad()
def distance_and_balance(net: Any, steps: int) -> tuple[float, float]:
    """Return the MMD to the mixture and the fraction of samples in its right-hand mode."""
    rng = torch.Generator().manual_seed(5)
    noise = torch.randn(SAMPLES, 2, 1, generator=rng)
    denoise, cond = EDMDenoiser(net, 0.75), unconditional(SAMPLES)
    x = ping_pong(denoise, noise, few_step_sigmas(steps, **LEVELS), cond, generator=rng)[:, :, 0]
    reference = mixture(SAMPLES, torch.Generator().manual_seed(99))[:, :, 0]
    return mmd(generated=x.numpy(), reference=reference.numpy()), float((x[:, 0] > 0).float().mean())


def test_teacher_fits_the_mixture(teacher: DiT):
    rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        noise = torch.randn(SAMPLES, 2, 1, generator=rng)
        x = dpmpp_2m(EDMDenoiser(teacher, 0.75), noise, karras_sigmas(40, **LEVELS), unconditional(SAMPLES))
    assert mmd(generated=x[:, :, 0].numpy(), reference=mixture(SAMPLES, rng)[:, :, 0].numpy()) < 0.01


# over 10 s: 300 steps of teacher training and 60 of distillation; fewer do not find both modes
@pytest.mark.parametrize("shared_taps", [False, True])
def test_distillation_fits_both_modes_in_few_steps(teacher: DiT, shared_taps: bool):
    fast = OptimConfig(learning_rate=1e-3, betas=(0.0, 0.99))
    config = StepsConfig(
        generator_updates=60,
        generator_optim=OptimConfig(learning_rate=3e-4, betas=(0.0, 0.99)),
        fake_optim=fast,
        head_optim=fast,
        gan=GanConfig(head_layers=0),
        shared_taps=shared_taps,
        ema_decay=0.95,
    )
    algorithm = StepDistillation(config, copy.deepcopy(teacher), sigma_data=0.75)
    before = {k: distance_and_balance(teacher, k)[0] for k in (1, 2)}
    train(algorithm, stream(), seed=0, config=LOOP)
    for steps, start in before.items():
        end, balance = distance_and_balance(algorithm.state.emas["generator"].network, steps)
        assert end < start / 5, f"{steps} steps: MMD {start:.4f} -> {end:.4f}"
        assert 0.35 < balance < 0.65
