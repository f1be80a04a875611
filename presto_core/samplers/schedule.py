"""Noise levels of the samplers (EDM, Karras et al. 2022, eq. 5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from presto_core.config.sampling import ScheduleConfig
from presto_core.errors import UserError


def list_few_step_levels(num_steps: int, schedule: ScheduleConfig) -> Tensor:
    """Return the noise levels of generator inputs, [num_steps] fp64: those of the list, else `few_step_sigmas`.

    Raises:
        UserError: the list has another number of levels.
    """
    if schedule.sigmas:
        return _read_levels(num_steps, schedule)
    return few_step_sigmas(num_steps, sigma_min=schedule.sigma_min, sigma_max=schedule.sigma_max, rho=schedule.rho)


def list_ode_levels(num_steps: int, schedule: ScheduleConfig) -> Tensor:
    """Return the levels of the teacher's samplers, [num_steps + 1] fp64, which end with 0; raises as above."""
    if schedule.sigmas:
        return torch.cat([_read_levels(num_steps, schedule), torch.zeros(1, dtype=torch.float64)])
    return karras_sigmas(num_steps, sigma_min=schedule.sigma_min, sigma_max=schedule.sigma_max, rho=schedule.rho)


def _read_levels(num_steps: int, schedule: ScheduleConfig) -> Tensor:
    if len(schedule.sigmas) != num_steps:
        raise UserError(
            f"schedule.sigmas has {len(schedule.sigmas)} noise levels for {num_steps} steps; give one per step"
        )
    return torch.tensor(schedule.sigmas, dtype=torch.float64)


def karras_sigmas(num_steps: int, *, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Return the levels of the teacher's samplers, [num_steps + 1] fp64: sigma_max ... sigma_min, then 0.

    Raises:
        ValueError: num_steps < 1, or not 0 < sigma_min < sigma_max.
    """
    _check_schedule(num_steps, sigma_min, sigma_max)
    u = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    return torch.cat([_karras_levels(u, sigma_min, sigma_max, rho), torch.zeros(1, dtype=torch.float64)])


def few_step_sigmas(num_steps: int, *, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Return the noise levels of generator inputs for ping-pong sampling, [num_steps] fp64.

    The levels are at u = i / num_steps: sigma_min is left out because a step from there changes nothing.
    """
    _check_schedule(num_steps, sigma_min, sigma_max)
    u = torch.arange(num_steps, dtype=torch.float64) / num_steps
    return _karras_levels(u, sigma_min, sigma_max, rho)


def pick_level(strength: float, *, sigma_min: float, sigma_max: float, rho: float) -> float:
    """Return the noise level that editing with this strength starts from: that of the schedule at u = 1 - strength.

    It is the sigma_max of the shorter schedule: equation 5 from there to sigma_min is the same curve, and a strength of
    1 is the whole of it.

    Raises:
        ValueError: the strength is not above 0 and at most 1.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength={strength} is out of range; set it above 0 and at most 1")
    if strength == 1:
        return sigma_max
    return float(_karras_levels(torch.tensor(1 - strength, dtype=torch.float64), sigma_min, sigma_max, rho))


def start_schedule_at(strength: float, schedule: ScheduleConfig, steps: int) -> tuple[ScheduleConfig, int]:
    """Return the schedule and number of steps of an edit of this strength.

    Listed levels are those of another program's sampler: the edit visits the lowest of them, as many as the strength's
    share, and takes so many steps. Raises ValueError as `pick_level` does.
    """
    level = pick_level(strength, sigma_min=schedule.sigma_min, sigma_max=schedule.sigma_max, rho=schedule.rho)
    if not schedule.sigmas:
        return schedule.model_copy(update={"sigma_max": level}), steps
    levels = schedule.sigmas[-math.ceil(strength * len(schedule.sigmas)) :]
    return schedule.model_copy(update={"sigmas": levels}), len(levels)


def _karras_levels(u: Tensor, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    # EDM, eq. 5: sigma_i = (sigma_max^(1/rho) + u_i (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + u * (low - high)) ** rho


def _check_schedule(num_steps: int, sigma_min: float, sigma_max: float) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} is too small; set it to at least 1")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min={sigma_min} and sigma_max={sigma_max} are invalid; set 0 < sigma_min < sigma_max")
