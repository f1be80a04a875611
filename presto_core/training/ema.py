"""Exponential moving average of a network's weights; the copy that is kept, evaluated and shipped."""

from __future__ import annotations

import copy

import torch
from torch import nn

from presto_core.training.sharding import (
    distribute_like,
    full_tensor,
    local_shard,
)


class Ema:
    """weights <- d weights + (1 - d) network, with d ramped up so that early averages are not the initialisation.

    Args:
        network: the network to follow, not sharded yet; its weights are copied.
        decay: upper limit of d.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move towards `network`; called once for each of its own optimiser steps."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        own, others = ([local_shard(p) for p in net.parameters()] for net in (self.network, network))
        torch._foreach_lerp_(own, others, 1 - decay)
        self.updates += 1

    def shard_like(self, network: nn.Module) -> None:
        """Keep the part of each weight that this worker holds of the network's own."""
        for name, like in network.named_parameters():
            _replace(self.network, name, distribute_like(self.network.get_parameter(name).detach(), like))

    def gather(self) -> None:
        """Make the weights whole again; every worker calls it."""
        for name, own in list(self.network.named_parameters()):
            _replace(self.network, name, full_tensor(own.detach()))


def _replace(network: nn.Module, name: str, value: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(path), leaf, nn.Parameter(value, requires_grad=False))
