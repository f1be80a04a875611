"""Classifier-free guidance as a wrapper around a denoiser (Ho & Salimans 2022), and two restraints of it.

An interval limits guidance to some noise levels, which saves evaluations at the others (Kynkaanniemi et al. 2024).
Rescaling takes back the variance that guidance adds, which makes music too loud (Lin et al. 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor

from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import Budget, Denoiser, LevelDenoiser

Interval = tuple[float, float]
"""Noise levels between which guidance acts, the upper one included."""


def make_guided_denoiser(
    denoise: Denoiser,
    scale: float,
    *,
    negative: Conditioning | None = None,
    interval: Interval | None = None,
    rescale: float = 0.0,
) -> Denoiser:
    """Return the guided denoiser D^w = D(x; sigma, none) + w (D(x; sigma, cond) - D(x; sigma, none)).

    A scale of 1 is the conditional denoiser and 0 the unconditional one, each with one evaluation. Otherwise both
    estimates are computed in one batch of twice the size.

    Args:
        negative: one row of conditions to move away from, in place of none.
        interval: noise levels between which guidance acts; at others the denoiser is the conditional one.
        rescale: phi, the share of each estimate that is scaled to the standard deviation of the conditional one.
    """

    def oppose(cond: Conditioning) -> Conditioning:
        if negative is None:
            return cond.to_unconditional()
        return negative.rows(torch.zeros(len(cond), dtype=torch.long, device=cond.keep.device))

    if scale == 1:
        return denoise
    if interval is not None:
        guided = make_guided_denoiser(denoise, scale, negative=negative, rescale=rescale)
        return LevelDenoiser(guided, denoise, *interval)
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
        guided = without + scale * (with_text - without)
        return _rescale(guided, with_text, rescale) if rescale else guided

    return denoise_guided


def _rescale(guided: Tensor, conditional: Tensor, phi: float) -> Tensor:
    """Scale a share phi of guided estimates [B, C, T] to the deviation, over each row, of the conditional ones."""
    # Lin et al. 2023, eqs. 15 and 16: phi (std(D_c) / std(D_w)) D_w + (1 - phi) D_w
    ratio = conditional.std(dim=(1, 2), keepdim=True) / guided.std(dim=(1, 2), keepdim=True)
    return (1 - phi + phi * ratio) * guided
