"""Deterministic samplers of the teacher: Euler, Heun (EDM, algorithm 1) and DPM-Solver++(2M).

All solve dx/dsigma = (x - D(x; sigma)) / sigma (EDM, eqs. 1 and 3, sigma(t) = t) from noise to data with any denoiser,
guided or not. The state has the dtype of `noise`: fp32 in use, fp64 in convergence tests. `budget` returns the blocks
to run at each noise level (Presto-L also speeds up plain sampling); None runs all.
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
    """Sample with Euler steps, first order, one evaluation per step.

    noise: [B, C, T] ~ N(0, I), sigmas: [num_steps + 1] down to 0.
    """
    x = noise * float(sigmas[0])
    for sigma, sigma_next in _sigma_pairs(sigmas):
        x0 = denoise_at(denoise, x, sigma, cond, budget)
        x = x + (sigma_next - sigma) * (x - x0) / sigma
    return x


def heun(
    denoise: Denoiser, noise: Tensor, sigmas: Tensor, cond: Conditioning | None, budget: BlocksAt = None
) -> Tensor:
    """Sample with Heun steps, second order (EDM, algorithm 1), two evaluations per step, one in the last."""
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
    """Sample with DPM-Solver++(2M), second-order multistep (Lu et al. 2022, algorithm 2), one evaluation per step."""
    x = noise * float(sigmas[0])
    previous_x0, previous_h = None, 0.0
    for sigma, sigma_next in _sigma_pairs(sigmas):
        x0 = denoise_at(denoise, x, sigma, cond, budget)
        if sigma_next == 0:
            return x0
        h = math.log(sigma / sigma_next)  # lambda_next - lambda, as lambda = -ln(sigma) in the EDM form
        if previous_x0 is None:
            direction = x0
        else:
            # D = (1 + 1 / 2r) x0_i - (1 / 2r) x0_(i-1),  r = h_(i-1) / h_i
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
