"""The interface of loop and algorithms to the other workers of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn


class WrapFn(Protocol):
    def __call__(self, module: nn.Module, *, name: str, some_unused: bool = False) -> nn.Module: ...


class PrepareFn(Protocol):
    def __call__(self, module: nn.Module, *, name: str, is_shared: bool = False) -> None: ...


def _leave_unwrapped(module: nn.Module, *, name: str, some_unused: bool = False) -> nn.Module:
    return module


def _leave_frozen(module: nn.Module, *, name: str, is_shared: bool = False) -> None:
    return None


@dataclass(frozen=True)
class Parallel:
    """One worker's rank, device and collective operations.

    Attributes:
        micro_batch_size: rows that pass through the networks together; 0 means all rows of the worker.
        distribute: wraps a trained network so that its gradients are averaged over workers; shards it in place if
            configured for its name, so build optimisers afterwards. Pass `some_unused=True` if a step may leave some
            parameters without gradient.
        prepare_frozen: readies a frozen network in place: compiles and shards it if configured, and keeps its matrices
            in bf16 where it runs in bf16, unless other networks share them.
        average: returns the mean of a tensor over workers.
        set_requires_grad_sync: sets whether the next backward of a network from `distribute` averages over workers.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    micro_batch_size: int = 0
    distribute: WrapFn = _leave_unwrapped
    prepare_frozen: PrepareFn = _leave_frozen
    average: Callable[[Tensor], Tensor] = lambda tensor: tensor
    set_requires_grad_sync: Callable[[nn.Module, bool], None] = lambda module, on: None


SINGLE_PROCESS = Parallel()
