"""Ping-pong sampling of a distilled generator: denoise fully, add less noise than before, repeat (METHOD section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    generator: torch.Generator | Sequence[torch.Generator],
    budget: Callable[[float], int] | None = None,
) -> Tensor:
    """Sample with one network evaluation per step, without guidance.

    Args:
        generate: the distilled generator.
        noise: [B, C, T] ~ N(0, I).
        sigmas: [num_steps] decreasing noise levels of the generator's inputs (`schedule.few_step_sigmas`).
        generator: generator of the noise added between steps; or one per row, so that a row is what it is alone.
        budget: returns the blocks to run at a noise level; None runs all.

    Returns:
        x0: [B, C, T].
    """
    # x = sigma_0 z;  x0 = G(x; sigma_i, c);  x = x0 + sigma_(i+1) eps
    levels = sigmas.tolist()
    x0 = denoise_at(generate, noise * levels[0], levels[0], cond, budget)
    for sigma in levels[1:]:
        eps = draw_noise_like(x0, generator)
        x0 = denoise_at(generate, x0 + sigma * eps, sigma, cond, budget)
    return x0


def draw_noise_like(x: Tensor, generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
    """Return noise of the shape of x [B, C, T]: from one generator, or each row from its own, as it is drawn alone."""
    if isinstance(generator, torch.Generator):
        return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    rows = [torch.randn((1, *x.shape[1:]), generator=own, device=x.device, dtype=x.dtype) for own in generator]
    return torch.cat(rows)
