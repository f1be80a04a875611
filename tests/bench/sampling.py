"""How much sooner a clip is there: the guided base model against the student, one clip at a time."""

from __future__ import annotations

import torch

from presto_core.config.sampling import ScheduleConfig
from presto_core.config.sections import NetworkConfig
from presto_core.diffusion.denoiser import EDMDenoiser
from presto_core.diffusion.guidance import make_guided_denoiser
from presto_core.networks.dit import DiT
from presto_core.samplers.edm import dpmpp_2m
from presto_core.samplers.few_step import ping_pong
from presto_core.samplers.schedule import few_step_sigmas, karras_sigmas
from tests.bench.clock import Comparison, alternate
from tests.bench.iteration import CHANNELS, FRAMES, TEXT_DIM, example_batch

BASE_STEPS, STUDENT_STEPS, GUIDANCE = 40, 4, 2.0


def measure(network: NetworkConfig, *, rounds: int) -> list[Comparison]:
    """The base with guidance in 40 steps, and a single evaluation of it, against the student in 4."""
    torch.manual_seed(0)
    denoise = EDMDenoiser(DiT(network, channels=CHANNELS, text_dim=TEXT_DIM).eval(), 1.0)
    cond, noise = example_batch(1).cond, torch.randn(1, CHANNELS, FRAMES)
    levels = ScheduleConfig().model_dump()
    base_sigmas, student_sigmas = karras_sigmas(BASE_STEPS, **levels), few_step_sigmas(STUDENT_STEPS, **levels)

    @torch.inference_mode()
    def base() -> None:
        dpmpp_2m(make_guided_denoiser(denoise, GUIDANCE), noise, base_sigmas, cond)

    @torch.inference_mode()
    def student() -> None:
        ping_pong(denoise, noise, student_sigmas, cond, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def evaluation() -> None:
        denoise(noise, torch.ones(1), cond)

    times = alternate({"base": base, "student": student, "evaluation": evaluation}, rounds=rounds)
    base_name, student_name = f"base, {BASE_STEPS} guided steps, 1 clip", f"student, {STUDENT_STEPS} steps"
    return [
        Comparison(base_name, times["base"], student_name, times["student"]),
        Comparison(student_name, times["student"], "one network evaluation", times["evaluation"]),
    ]
