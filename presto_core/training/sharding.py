"""Conversion between sharded tensors (DTensor) and the full tensors that checkpoints and artifacts contain.

Saved tensors are full and have the same names under any sharding, so a run can resume with another sharding.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, distributed, nn

from presto_core.networks.adapters import select_trained

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(value: object) -> TypeGuard[DTensor]:
    """Whether a value is a sharded tensor.

    There is none unless something sharded it, and imported its module: a process that does not is spared seconds.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def local_shard(tensor: Tensor) -> Tensor:
    """Return this worker's shard, which shares memory with the tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather the full tensor; every worker calls it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def distribute_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this worker's shard of a full tensor, sharded as `like` is; needs no communication."""
    if not is_sharded(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def gather_on_rank0(state: Any) -> Any:
    """Gather the sharded tensors of a nested state into CPU memory on rank 0; other ranks get empty tensors.

    Every worker calls it with the same state; only one tensor at a time is full on the device.
    """
    if is_sharded(state):
        full = state.full_tensor().detach()
        return full.cpu() if distributed.get_rank() == 0 else full.new_empty(0)
    if isinstance(state, dict):
        return {k: gather_on_rank0(v) for k, v in state.items()}
    if isinstance(state, list | tuple):
        return [gather_on_rank0(v) for v in state]
    return state


class TensorName(str):
    """Stands for a tensor in a state whose tensors are read later."""

    __slots__ = ()


TensorSetter = Callable[[Tensor], None]
"""Puts a full tensor, or this worker's shard of it, where it belongs."""


def find_weight_setters(network: nn.Module, names: dict[str, Any]) -> dict[str, TensorSetter]:
    """Return where the weights of a network belong, which may be sharded.

    Args:
        names: key of the network's state_dict -> `TensorName`.

    Raises:
        RuntimeError: the weights belong to another network.
    """
    own = select_trained(network)
    if different := sorted(own.keys() ^ names.keys()):
        raise RuntimeError(f"other weights: {', '.join(different[:3])}")
    return {names[key]: partial(_copy_into, key, tensor) for key, tensor in own.items()}


@torch.no_grad()
def _copy_into(key: str, own: Tensor, full: Tensor) -> None:
    if own.shape != full.shape:
        raise RuntimeError(f"size mismatch for {key}: {tuple(full.shape)} instead of {tuple(own.shape)}")
    own.copy_(distribute_like(full, own))


class OptimizerMoments:
    """The moments of an optimiser, whose network may be sharded, while they are read.

    Args:
        state: the optimiser's state_dict with a `TensorName` for each tensor.

    Attributes:
        setters: name -> puts the moment into its place.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        self.optimizer, self.state = optimizer, state
        self.moments: dict[int, dict[str, Any]] = {}
        self.setters: dict[str, TensorSetter] = {}
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, values in state["state"].items():
            if index < len(parameters):
                self.moments[index] = own = dict(values)
                for key, name in values.items():
                    if isinstance(name, TensorName):
                        self.setters[name] = partial(_keep_moment, own, key, parameters[index])

    def load(self) -> None:
        """Give the optimiser its moments, after all are in place; ValueError if they belong to another network."""
        self.optimizer.load_state_dict({**self.state, "state": self.moments})


def _keep_moment(moments: dict[str, Any], key: str, parameter: Tensor, full: Tensor) -> None:
    own = distribute_like(full, parameter)
    moments[key] = own.to(parameter.device) if own.shape == parameter.shape else own
