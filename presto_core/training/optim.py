"""One optimiser update: learning-rate schedule, gradient clipping, and rejection of non-finite gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from presto_core.config.sections import OptimConfig
from presto_core.training.sharding import full_tensor

FINAL_FRACTION = 0.05  # of the learning rate, at the end of a cosine decay


def build_adamw(parameters: Iterable[nn.Parameter], config: OptimConfig) -> torch.optim.AdamW:
    """Build AdamW over the parameters that train; weight decay is decoupled (Loshchilov & Hutter 2019)."""
    return torch.optim.AdamW(
        [p for p in parameters if p.requires_grad],
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(config: OptimConfig, *, update: int, total_updates: int) -> float:
    """Return the learning rate of update 0, 1, ...: linear warm-up, then constant or cosine."""
    if update < config.warmup_steps:
        return config.learning_rate * (update + 1) / (config.warmup_steps + 1)
    if config.decay == "constant":
        return config.learning_rate
    progress = (update - config.warmup_steps) / max(total_updates - config.warmup_steps, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return config.learning_rate * (FINAL_FRACTION + (1 - FINAL_FRACTION) * cosine)


DueOptimizers = dict[str, tuple[torch.optim.Optimizer, OptimConfig]]
"""Optimisers that step together: network name -> (optimiser, its config)."""


def step(due: DueOptimizers, *, update: int, total_updates: int) -> dict[str, Tensor]:
    """Clip, check, apply and clear the accumulated gradients; return their norms before clipping, one number each.

    Gradients are already averaged over workers, so every rank sees the same norms. If one is not finite, no network is
    updated and the loop ends the run. The device decides that by itself: the host does not wait for the norms.
    """
    norms = {name: _clip_gradients(optimizer, config) for name, (optimizer, config) in due.items()}
    found_inf = (~torch.stack([*norms.values()]).isfinite().all()).to(torch.float32)  # the kernel reads fp32
    for optimizer, config in due.values():
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, update=update, total_updates=total_updates)
        _step_if_finite(optimizer, found_inf)
        optimizer.zero_grad(set_to_none=True)
    return norms


def _step_if_finite(optimizer: torch.optim.Optimizer, found_inf: Tensor) -> None:
    """Step a fused optimiser unless `found_inf` [] is 1: by the argument that torch.amp's gradient scaler uses."""
    optimizer.found_inf = found_inf  # type: ignore[attr-defined]
    optimizer.step()
    del optimizer.found_inf  # type: ignore[attr-defined]


def _clip_gradients(optimizer: torch.optim.Optimizer, config: OptimConfig) -> Tensor:
    """Clip an optimiser's gradients in place and return their norm before clipping."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for p in parameters:
        if p.grad is None:  # a block that no row ran has gradient 0, independent of how workers split the rows
            p.grad = torch.zeros_like(p)
    return full_tensor(nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
