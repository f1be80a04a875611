"""How one process of a run relates to the others: the only thing the loop knows about workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Parallel:
    """One worker's place in its group.

    Attributes:
        distribute: wraps a trained network so that its gradients are averaged over workers.
        average: mean of a tensor over workers.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    distribute: Callable[[nn.Module], nn.Module] = lambda module: module
    average: Callable[[Tensor], Tensor] = lambda tensor: tensor


ALONE = Parallel()
