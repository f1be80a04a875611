"""Exponential moving average of a network's weights; the copy that is evaluated and published."""

from __future__ import annotations

import copy

import torch
from torch import nn

from presto_core.training.sharding import distribute_like, full_tensor, local_shard


class Ema:
    """Moving average weights <- d weights + (1 - d) network, with d ramped up to forget the initialisation early.

    Args:
        network: network to average, not sharded yet; its weights are copied, or its adapters if it has any.
        decay: upper limit of d.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = _copy_trained(network).requires_grad_(False).eval()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Update from `network`; called once per optimiser step of that network."""
        # d = min(decay, (1 + n) / (10 + n)) after n updates
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        own, others = ([local_shard(p) for p in _list_trained(net)] for net in (self.network, network))
        torch._foreach_lerp_(own, others, 1 - decay)
        self.updates += 1

    def shard_like(self, network: nn.Module) -> None:
        """Shard each weight as the network's own weights are sharded."""
        for name, like in network.named_parameters():
            _replace(self.network, name, distribute_like(self.network.get_parameter(name).detach(), like))

    def gather(self) -> None:
        """Unshard the weights; every worker calls it."""
        for name, own in list(self.network.named_parameters()):
            _replace(self.network, name, full_tensor(own.detach()))


def _copy_trained(network: nn.Module) -> nn.Module:
    """Copy a network; of one with adapters, what trains, and the frozen weights are shared."""
    if getattr(network, "trained_keys", None) is None:
        return copy.deepcopy(network)
    trained = {id(parameter) for parameter in _list_trained(network)}
    shared = [tensor for tensor in (*network.parameters(), *network.buffers()) if id(tensor) not in trained]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in shared})


def _list_trained(network: nn.Module) -> list[nn.Parameter]:
    keys = getattr(network, "trained_keys", None)
    return [p for name, p in network.named_parameters() if keys is None or name in keys]


def _replace(network: nn.Module, name: str, value: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(path), leaf, nn.Parameter(value, requires_grad=False))
