"""Ping-pong sampling of a distilled generator: denoise fully, noise again a little less, repeat (METHOD section 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import Denoiser, denoise_at


def ping_pong(
    generate: Denoiser,
    noise: Tensor,
    sigmas: Tensor,
    cond: Conditioning | None,
    *,
    generator: torch.Generator,
    budget: Callable[[float], int] | None = None,
) -> Tensor:
    """One network evaluation a step, no guidance.

    Args:
        generate: the distilled generator.
        noise: [B, C, T] ~ N(0, I).
        sigmas: [num_steps] falling noise levels of the generator's inputs (schedule.few_step_sigmas).
        generator: random source of the noise added between steps.
        budget: blocks to run at each noise level; None runs all of them.

    Returns:
        x0: [B, C, T].
    """
    # x = sigma_0 z;  x0 = G(x; sigma_i, c);  x = x0 + sigma_(i+1) eps
    levels = sigmas.tolist()
    x0 = denoise_at(generate, noise * levels[0], levels[0], cond, budget)
    for sigma in levels[1:]:
        eps = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        x0 = denoise_at(generate, x0 + sigma * eps, sigma, cond, budget)
    return x0
