"""Deterministic samplers of the base model: Euler, Heun (EDM, algorithm 1) and DPM-Solver++(2M).

All solve dx/dsigma = (x - D(x; sigma)) / sigma from noise to data and take any denoiser, guided or not. The state is
kept in the dtype of `noise`: fp32 in use, fp64 in convergence tests. `budget` gives the blocks to run at each noise
level (Presto-L speeds up plain sampling too); None runs all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from presto_core.diffusion.conditioning import Conditioning
from presto_core.diffusion.denoiser import Denoiser, denoise_at

BlocksAt = Callable[[float], int] | None


def euler(
    denoise: Denoiser, noise: Tensor, sigmas: Tensor, cond: Conditioning | None, budget: BlocksAt = None
) -> Tensor:
    """First order; one denoised estimate a step. noise: [B, C, T] ~ N(0, I), sigmas: [num_steps + 1] down to 0."""
    x = noise * float(sigmas[0])
    for sigma, sigma_next in _sigma_pairs(sigmas):
        x0 = denoise_at(denoise, x, sigma, cond, budget)
        x = x + (sigma_next - sigma) * (x - x0) / sigma
    return x


def heun(
    denoise: Denoiser, noise: Tensor, sigmas: Tensor, cond: Conditioning | None, budget: BlocksAt = None
) -> Tensor:
    """Second order (EDM, algorithm 1); two denoised estimates a step, one in the last."""
    x = noise * float(sigmas[0])
    for sigma, sigma_next in _sigma_pairs(sigmas):
        slope = (x - denoise_at(denoise, x, sigma, cond, budget)) / sigma
        x_euler = x + (sigma_next - sigma) * slope
        if sigma_next == 0:
            return x_euler
        slope_next = (x_euler - denoise_at(denoise, x_euler, sigma_next, cond, budget)) / sigma_next
        x = x + (sigma_next - sigma) * (slope + slope_next) / 2
    return x


def dpmpp_2m(
    denoise: Denoiser, noise: Tensor, sigmas: Tensor, cond: Conditioning | None, budget: BlocksAt = None
) -> Tensor:
    """Second-order multistep (Lu et al. 2022, algorithm 2, in sigma = exp(-lambda)); one denoised estimate a step."""
    x = noise * float(sigmas[0])
    previous_x0, previous_h = None, 0.0
    for sigma, sigma_next in _sigma_pairs(sigmas):
        x0 = denoise_at(denoise, x, sigma, cond, budget)
        if sigma_next == 0:
            return x0
        h = math.log(sigma / sigma_next)
        if previous_x0 is None:
            direction = x0
        else:
            r = previous_h / h
            direction = (1 + 1 / (2 * r)) * x0 - previous_x0 / (2 * r)
        # x <- (sigma_next / sigma) x + (1 - e^-h) D, with e^-h = sigma_next / sigma
        x = sigma_next / sigma * x + (1 - sigma_next / sigma) * direction
        previous_x0, previous_h = x0, h
    return x


SAMPLERS: dict[str, Callable[[Denoiser, Tensor, Tensor, Conditioning | None, BlocksAt], Tensor]] = {
    "euler": euler,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
}


def _sigma_pairs(sigmas: Tensor) -> list[tuple[float, float]]:
    levels = sigmas.tolist()
    return list(zip(levels, levels[1:]))
