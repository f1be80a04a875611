"""Low-rank adapters (LoRA, Hu et al. 2021) over frozen weights that several networks share.

Each network is a copy whose modules are its own and whose frozen weights are the same tensors. A linear layer of a
block computes W x + b + (alpha / rank) B A x with A, B of its own: three networks need the memory of one and of their
adapters. No adapter is ever switched: that would lose gradients wherever activations are recomputed in the backward
pass.
"""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from presto_core.config.sections import LoraConfig
from presto_core.errors import UserError
from presto_core.networks.network import Network

DOWN, UP = "adapter_down", "adapter_up"


class AdaptedLinear(nn.Linear):
    """A linear layer with the weights of another one, frozen, and an adapter that is zero at first."""

    def __init__(self, base: nn.Linear, *, rank: int, scale: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.scale = base.in_features, base.out_features, scale
        self.weight, self.bias = base.weight, base.bias
        self.adapter_down = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.adapter_up = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.adapter_down, a=math.sqrt(5))

    def forward(self, input: Tensor) -> Tensor:
        # W x + b + (alpha / rank) B (A x)
        low = F.linear(F.linear(input, self.adapter_down), self.adapter_up)
        return F.linear(input, self.weight, self.bias) + self.scale * low

    def merge(self, *, overwrite: bool = False) -> nn.Linear:
        """Return a plain layer with W + (alpha / rank) B A, in new memory or in W's own."""
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        delta = self.adapter_up.double() @ self.adapter_down.double()
        merged = (self.weight.double() + self.scale * delta).to(self.weight.dtype)
        weight = self.weight.copy_(merged) if overwrite else merged
        plain.weight, plain.bias = nn.Parameter(weight.detach(), requires_grad=False), self.bias
        return plain


def add_adapters(network: Network, config: LoraConfig) -> Network:
    """Freeze a network, and return a copy that shares its weights and has adapters, which alone train.

    An embedding of the budget, which starts at zero, is no adapter but is trained with them, in the copy alone.

    Raises:
        UserError: no linear layer of a block is among the configured ones.
    """
    names = find_layers(network.set_trainable(), config)
    network.requires_grad_(False)
    adapted = share_copy(network)
    scale = config.alpha / config.rank
    for name in names:
        parent, _, leaf = name.rpartition(".")
        base = adapted.get_submodule(name)
        assert isinstance(base, nn.Linear)
        setattr(adapted.get_submodule(parent), leaf, AdaptedLinear(base, rank=config.rank, scale=scale))
    own = [name for name in adapted.state_dict() if name in network.budget_weights]
    for name in own:
        parent, _, leaf = name.rpartition(".")
        value = adapted.get_parameter(name).detach().clone()
        setattr(adapted.get_submodule(parent), leaf, nn.Parameter(value))
    adapted.trained_keys = frozenset([*own, *(f"{name}.{part}" for name in names for part in (DOWN, UP))])
    return adapted


def share_copy(network: Network) -> Network:
    """Return a copy of the modules with the same tensors."""
    tensors = (*network.parameters(), *network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


def find_layers(network: Network, config: LoraConfig) -> list[str]:
    """Return the names of the linear layers that get adapters: those inside blocks that train.

    Layers that an imported network does not use do not train; an adapter of one would have no gradient, for which
    several workers would wait in vain.

    Raises:
        UserError: there are none.
    """
    blocks = next(name for name, module in network.named_modules() if module is network.blocks)
    linear = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(f"{blocks}.") and module.weight.requires_grad
    ]
    found = [name for name in linear if not config.targets or any(target in name for target in config.targets)]
    if not found:
        known = sorted({name.removeprefix(f"{blocks}.").partition(".")[2] for name in linear})
        raise UserError(
            f"lora.targets={list(config.targets)} names no linear layer of a block; the layers are {', '.join(known)}"
        )
    return found


def share_equal_weights(network: nn.Module, base: nn.Module) -> None:
    """Let a network use the tensors of another one wherever theirs have the same name and values."""
    theirs = dict(base.named_parameters())
    for name, own in list(network.named_parameters()):
        other = theirs.get(name)
        if other is not None and other is not own and own.shape == other.shape and torch.equal(own, other):
            path, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(path), leaf, other)


def select_trained(network: nn.Module) -> dict[str, Tensor]:
    """Return the part of a network's state that a run changes: all of it, or that of adapters alone."""
    state, keys = network.state_dict(), getattr(network, "trained_keys", None)
    return state if keys is None else {name: value for name, value in state.items() if name in keys}


@torch.no_grad()
def merge_adapters(network: nn.Module, *, overwrite: bool = False) -> nn.Module:
    """Return a plain network that computes the same; one without adapters as it is. Other weights are shared.

    Args:
        overwrite: put merged weights where the base has its own, to save the memory of a network; no network that
            shares the base, such as the teacher, computes the same afterwards.
    """
    if getattr(network, "trained_keys", None) is None:
        return network
    plain = share_copy(cast(Network, network))
    plain.trained_keys = None
    for name, module in list(plain.named_modules()):
        if isinstance(module, AdaptedLinear):
            parent, _, leaf = name.rpartition(".")
            setattr(cast(Any, plain).get_submodule(parent), leaf, module.merge(overwrite=overwrite))
    return plain
