"""How one process of a run relates to the others: the only thing the loop knows about workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn


class Distribute(Protocol):
    def __call__(self, module: nn.Module, *, some_unused: bool = False) -> nn.Module: ...


def _as_it_is(module: nn.Module, *, some_unused: bool = False) -> nn.Module:
    return module


@dataclass(frozen=True)
class Parallel:
    """One worker's place in its group.

    Attributes:
        distribute: wraps a trained network so that its gradients are averaged over workers; `some_unused=True` where
            a step may leave some of its parameters without gradient.
        average: mean of a tensor over workers.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    distribute: Distribute = _as_it_is
    average: Callable[[Tensor], Tensor] = lambda tensor: tensor


ALONE = Parallel()
