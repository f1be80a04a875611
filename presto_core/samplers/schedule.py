"""Noise levels that samplers visit (EDM, equation 5)."""

from __future__ import annotations

import torch
from torch import Tensor


def karras_sigmas(num_steps: int, *, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """[num_steps + 1] fp64: sigma_max ... sigma_min, then 0, for the base samplers.

    Raises:
        ValueError: num_steps < 1 or the levels are not 0 < sigma_min < sigma_max.
    """
    _check_schedule(num_steps, sigma_min, sigma_max)
    u = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    # sigma_i = (sigma_max^(1/rho) + u_i (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho
    return torch.cat([_karras_levels(u, sigma_min, sigma_max, rho), torch.zeros(1, dtype=torch.float64)])


def few_step_sigmas(num_steps: int, *, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """[num_steps] fp64 generator inputs for ping-pong sampling.

    The levels at u = i / num_steps: sigma_min itself is left out, since a step from there would change nothing.
    """
    _check_schedule(num_steps, sigma_min, sigma_max)
    u = torch.arange(num_steps, dtype=torch.float64) / num_steps
    return _karras_levels(u, sigma_min, sigma_max, rho)


def _karras_levels(u: Tensor, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + u * (low - high)) ** rho


def _check_schedule(num_steps: int, sigma_min: float, sigma_max: float) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} must be at least 1")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"need 0 < sigma_min={sigma_min} < sigma_max={sigma_max}")
