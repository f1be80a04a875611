"""Conversion between sharded tensors (DTensor) and the full tensors that checkpoints and artifacts contain.

Saved tensors are full and have the same names under any sharding, so a run can resume with another sharding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def local_shard(tensor: Tensor) -> Tensor:
    """Return this worker's shard, which shares memory with the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather the full tensor; every worker calls it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distribute_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this worker's shard of a full tensor, sharded as `like` is; needs no communication."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def gather_on_rank0(state: Any) -> Any:
    """Gather the sharded tensors of a nested state into CPU memory on rank 0; other ranks get empty tensors.

    Every worker calls it with the same state; only one tensor at a time is full on the device.
    """
    if isinstance(state, DTensor):
        full = state.full_tensor().detach()
        return full.cpu() if distributed.get_rank() == 0 else full.new_empty(0)
    if isinstance(state, dict):
        return {k: gather_on_rank0(v) for k, v in state.items()}
    if isinstance(state, list | tuple):
        return [gather_on_rank0(v) for v in state]
    return state


def load_network(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Load full weights into a network that may be sharded.

    Raises:
        RuntimeError: the weights belong to another network.
    """
    own = network.state_dict()
    network.load_state_dict({k: distribute_like(v, own[k]) if k in own else v for k, v in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load full moments into the optimiser of a network that may be sharded.

    Raises:
        ValueError: the moments belong to another network.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        index: {
            name: distribute_like(v, parameters[index]) if isinstance(v, Tensor) else v for name, v in values.items()
        }
        for index, values in state["state"].items()
        if index < len(parameters)
    }
    optimizer.load_state_dict({**state, "state": moments})
