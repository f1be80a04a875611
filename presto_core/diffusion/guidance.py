"""Classifier-free guidance as a wrapper around a denoiser (Ho & Salimans 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import Budget, Denoiser


def make_guided_denoiser(denoise: Denoiser, scale: float, *, negative: Conditioning | None = None) -> Denoiser:
    """Return the guided denoiser D^w = D(x; sigma, none) + w (D(x; sigma, cond) - D(x; sigma, none)).

    A scale of 1 is the conditional denoiser and 0 the unconditional one, each with one evaluation. Otherwise both
    estimates are computed in one batch of twice the size.

    Args:
        negative: one row of conditions to move away from, in place of none.
    """

    def oppose(cond: Conditioning) -> Conditioning:
        if negative is None:
            return cond.to_unconditional()
        return negative.rows(torch.zeros(len(cond), dtype=torch.long, device=cond.keep.device))

    if scale == 1:
        return denoise
    if scale == 0:
        return lambda x, sigma, cond, budget=None: denoise(x, sigma, None if cond is None else oppose(cond), budget)

    def denoise_guided(x: Tensor, sigma: Tensor, cond: Conditioning | None, budget: Budget | None = None) -> Tensor:
        if cond is None:
            raise ValueError(f"guidance_scale={scale} needs conditions; pass captions or set guidance_scale=1")
        both = Conditioning.cat([cond, oppose(cond)])
        twice = torch.cat([budget, budget]) if isinstance(budget, Tensor) else budget
        twice = (*budget, *budget) if isinstance(budget, tuple) else twice
        with_text, without = denoise(torch.cat([x, x]), torch.cat([sigma, sigma]), both, twice).chunk(2)
        # METHOD section 1: D^w = D(x; sigma, none) + w (D(x; sigma, c) - D(x; sigma, none))
        return without + scale * (with_text - without)

    return denoise_guided
