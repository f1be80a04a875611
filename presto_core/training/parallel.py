"""How one process of a run relates to the others: the only thing loop and algorithms know about workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn


class WrapFn(Protocol):
    def __call__(self, module: nn.Module, *, name: str, some_unused: bool = False) -> nn.Module: ...


def _leave_unwrapped(module: nn.Module, *, name: str, some_unused: bool = False) -> nn.Module:
    return module


@dataclass(frozen=True)
class Parallel:
    """One worker's place in its group.

    Attributes:
        micro_batch_size: rows that go through the networks at once; 0 takes a worker's share whole.
        distribute: wraps a trained network so that its gradients are averaged over workers; shards it in place where
            that is wanted for its name, so optimisers are made afterwards. `some_unused=True` where a step may leave
            some of its parameters without gradient.
        hold: shards a frozen network where that is wanted for its name, in place.
        average: mean of a tensor over workers.
        synchronise: tells a network that `distribute` gave whether its next backward averages over workers.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    micro_batch_size: int = 0
    distribute: WrapFn = _leave_unwrapped
    shard_frozen: Callable[[nn.Module, str], None] = lambda module, name: None
    average: Callable[[Tensor], Tensor] = lambda tensor: tensor
    set_requires_grad_sync: Callable[[nn.Module, bool], None] = lambda module, on: None


SINGLE_PROCESS = Parallel()
