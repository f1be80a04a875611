"""Detect non-finite losses and gradients on any rank and end the run on all ranks with the same message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from presto_core.errors import UserError
from presto_core.training.parallel import Parallel

Levels = dict[str, Tensor]
FINE, NAN, INFINITE = 0.0, 1.0, 2.0
KIND_NAMES = {NAN: "nan", INFINITE: "inf"}
MAX_NAMED_LOSSES = 3  # per message; the others usually follow from these
STEPS_PER_CHECK = 8  # on a GPU


class DivergenceError(UserError):
    """A loss or gradient is not finite; raised on all ranks in the same step, which is not saved."""


@dataclass(frozen=True)
class _Step:
    total_step: int
    metrics: dict[str, Tensor]
    levels: Levels
    non_finite: Tensor


class StepCheck:
    """Checks that steps are finite on all ranks, and whether a rank wants to stop.

    A check waits for what the device computes, so on a GPU several steps are checked at once: the host launches them
    without a wait. A step whose gradient is not finite changes no weights, and none is saved before it is checked.

    Args:
        steps_per_check: steps after which a check is due; by default 1 on a CPU, and more on other devices.
    """

    def __init__(self, parallel: Parallel, *, steps_per_check: int | None = None) -> None:
        self.parallel = parallel
        self.steps_per_check = steps_per_check or (1 if parallel.device.type == "cpu" else STEPS_PER_CHECK)
        self._steps: list[_Step] = []

    def add(self, total_step: int, metrics: dict[str, Tensor], levels: Levels) -> None:
        """Remember step `total_step` until the next check."""
        flag = _has_non_finite(metrics, self.parallel.device)
        self._steps.append(_Step(total_step, metrics, dict(levels), flag))

    @property
    def is_due(self) -> bool:
        return len(self._steps) >= self.steps_per_check

    def run(self, stop: bool, describe_step: Callable[[int], str]) -> bool:
        """Return whether a rank passed `stop`, the same on all; every rank calls it after the same step.

        It is one all-reduce of a few numbers, and lets all ranks end after the same step.

        Args:
            describe_step: tells of a diverged step, given its number, what follows for the run.

        Raises:
            DivergenceError: on all ranks, of the first step that is not finite on one.
        """
        steps, self._steps = self._steps, []
        wants_stop = torch.full((), float(stop), device=self.parallel.device)
        flags = torch.stack([wants_stop, *(step.non_finite.float() for step in steps)])
        stopped, *diverged = [share > 0 for share in self.parallel.average(flags).tolist()]
        for step, has_diverged in zip(steps, diverged):
            if has_diverged:
                description = describe_divergence(step.metrics, step.levels, self.parallel)
                raise DivergenceError(f"{description} {describe_step(step.total_step)}")
        return stopped


def _has_non_finite(metrics: dict[str, Tensor], device: torch.device) -> Tensor:
    """Return whether a metric is NaN or infinite on this rank: [] bool on `device`."""
    values = [v.to(device, torch.float32).flatten() for v in _drop_loss_bins(metrics).values()]
    return ~torch.cat(values).isfinite().all() if values else torch.zeros((), dtype=torch.bool, device=device)


@contextmanager
def record_noise_levels(networks: dict[str, nn.Module]) -> Iterator[Levels]:
    """Record the noise levels of each network's last call: name -> c_noise = ln(sigma) / 4, [B]."""
    levels: Levels = {}

    def record(name: str, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        if len(arguments) > 1 and isinstance(arguments[1], Tensor):  # raw network F(x, c_noise, ...)
            levels[name] = arguments[1].detach()

    hooks = [net.register_forward_pre_hook(partial(record, name)) for name, net in networks.items()]
    try:
        yield levels
    finally:
        for hook in hooks:
            hook.remove()


def describe_divergence(metrics: dict[str, Tensor], levels: Levels, parallel: Parallel) -> str:
    """Name the non-finite loss, its rank and noise levels, or else the non-finite gradient; every rank calls it."""
    names = list(_drop_loss_bins(metrics))
    table = _gather_rows(
        torch.tensor([*map(_classify, _drop_loss_bins(metrics).values()), *_sigma_range(levels)]), parallel
    )
    losses = [i for i, name in enumerate(names) if not name.endswith("grad_norm")]
    losses.sort(key=lambda i: not names[i].endswith("loss"))
    for rank, row in enumerate(table):
        bad = [f"{names[i]} is {KIND_NAMES[row[i]]}" for i in losses if row[i] != FINE]
        if bad:
            where = f"noise levels sigma {row[-2]:.3g} ... {row[-1]:.3g}"
            return f"{', '.join(bad[:MAX_NAMED_LOSSES])} on rank {rank}, at {where}"
    bad = [f"{name} is {KIND_NAMES[kind]}" for name, kind in zip(names, table[0]) if kind != FINE]
    return f"{', '.join(bad)} on all ranks, at noise levels sigma {table[0][-2]:.3g} ... {table[0][-1]:.3g}"


def _drop_loss_bins(metrics: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the bins of a loss (`dsm_loss/q1`): a bin may be empty in a batch, and the loss itself covers them."""
    return {name: metrics[name] for name in sorted(metrics) if "/" not in name}


def _classify(value: Tensor) -> float:
    return NAN if value.isnan().any() else INFINITE if value.isinf().any() else FINE


def _sigma_range(levels: Levels) -> tuple[float, float]:
    """Return the lowest and highest sigma of any network call."""
    if not levels:
        return 0.0, 0.0
    # c_noise = ln(sigma) / 4 (EDM, table 1), so sigma = exp(4 c_noise)
    c_noise_values = torch.cat([c_noise.float().flatten().cpu() for c_noise in levels.values()])
    return float((4 * c_noise_values.min()).exp()), float((4 * c_noise_values.max()).exp())


def _gather_rows(row: Tensor, parallel: Parallel) -> list[list[float]]:
    """Gather one row [N] per rank: [ranks, N]; small integers are preserved exactly."""
    rows = torch.zeros(parallel.world_size, len(row), dtype=torch.float64, device=parallel.device)
    rows[parallel.rank] = row.to(rows)
    table: list[list[float]] = (parallel.average(rows) * parallel.world_size).float().tolist()
    return table
