"""Whether dropped blocks save the time they should: wall time against FLOPs, in sampling and in training."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from presto_core.config.layers import FullBudget, PrestoLSBudget
from presto_core.config.sampling import ScheduleConfig
from presto_core.config.sections import LayersConfig, NetworkConfig, StepsConfig
from presto_core.diffusion.denoiser import EDMDenoiser, add_noise
from presto_core.networks.dit import DiT
from presto_core.networks.layer_budget import LayerBudget
from presto_core.samplers.few_step import ping_pong
from presto_core.samplers.schedule import few_step_sigmas
from presto_core.training.layer_distillation import LayerDistillation
from presto_core.training.state import make_step_rng
from tests.bench.clock import Comparison, alternate
from tests.bench.iteration import CHANNELS, TEXT_DIM, example_batch

STUDENT_STEPS = 4
Call = Callable[[], object]


def measure(
    network: NetworkConfig, layers: LayersConfig, steps: StepsConfig, *, frames: int, rounds: int
) -> list[Comparison]:
    """Presto-LS against Presto-S, and a training step at mixed budgets against one at full depth."""
    torch.manual_seed(0)
    teacher = DiT(network, channels=CHANNELS, text_dim=TEXT_DIM)
    noise = steps.p_gen
    budget = LayerBudget.from_distribution(noise, PrestoLSBudget(), depth=network.depth)
    both = teacher.with_budget(budget)
    batch = steps.global_batch_size
    return [
        _compare(
            f"LS, {STUDENT_STEPS} steps, 1 clip",
            sampling(both, budget, frames),
            f"S, {STUDENT_STEPS} steps",
            sampling(teacher, None, frames),
            rounds=rounds,
        ),
        _compare(
            f"LS generator, forward and backward, batch {batch}",
            generator_pass(both, budget, steps, frames),
            "S generator",
            generator_pass(teacher, None, steps, frames),
            rounds=rounds,
        ),
        _compare(
            f"L training step, mixed budgets, batch {layers.global_batch_size}",
            training_step(teacher, layers, frames),
            "all blocks",
            training_step(teacher, layers.model_copy(update={"budget": FullBudget()}), frames),
            rounds=rounds,
        ),
    ]


def sampling(net: DiT, budget: LayerBudget | None, frames: int) -> Call:
    """One clip by ping-pong, with a frozen copy of the network as inference has it."""
    sigmas = few_step_sigmas(STUDENT_STEPS, **ScheduleConfig().model_dump())
    noise, cond = torch.randn(1, CHANNELS, frames), example_batch(1).cond
    denoise = EDMDenoiser(copy.deepcopy(net).eval().requires_grad_(False), 1.0)

    @torch.no_grad()
    def call() -> None:
        rng = torch.Generator().manual_seed(0)
        ping_pong(denoise, noise, sigmas, cond, generator=rng, budget=budget.blocks_at if budget else None)

    return call


def generator_pass(net: DiT, budget: LayerBudget | None, steps: StepsConfig, frames: int) -> Call:
    """The generator's part of its update: its pass over a batch with noise from p_gen, and back."""
    batch, rng = example_batch(steps.global_batch_size, frames), make_step_rng(0, total_step=0)
    sigma = steps.p_gen.sample(len(batch.x0), generator=rng)
    noisy, denoise = add_noise(batch.x0, sigma, generator=rng), EDMDenoiser(net, 1.0)

    def call() -> None:
        denoise(noisy, sigma, batch.cond, budget.blocks_per_sample(sigma) if budget else None).mean().backward()

    return call


def training_step(teacher: DiT, layers: LayersConfig, frames: int) -> Call:
    """One update without self-teacher, whose own pass would hide what the budgets save; the same noise levels each."""
    algorithm = LayerDistillation(layers.model_copy(update={"self_teacher_weight": 0.0}), teacher, sigma_data=1.0)
    batch = example_batch(layers.global_batch_size, frames)
    return lambda: algorithm.update(batch, generator=make_step_rng(0, total_step=0))


def _compare(what: str, call: Call, against: str, other: Call, *, rounds: int) -> Comparison:
    times = alternate({"this": call, "other": other}, rounds=rounds)
    return Comparison(what, times["this"], against, times["other"], flop_ratio=_flops(call) / _flops(other))


def _flops(call: Call) -> int:
    # the counter knows attention by its matrix products, not by a CPU's fused kernel
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())
