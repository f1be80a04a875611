"""Where a worker's `Parallel` is made: how one process of a training run relates to the others."""

from __future__ import annotations

from typing import Any

import torch

from presto_core.training.parallel import Parallel


def ray_parallel(context: Any) -> Parallel:
    """One Ray Train worker's place in its group.

    Args:
        context: of Ray Train, inside a worker.
    """
    import ray.train.torch
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    device, world_size = ray.train.torch.get_device(), context.get_world_size()
    if world_size == 1:
        return Parallel(device=device)

    def average(tensor: torch.Tensor) -> torch.Tensor:
        distributed.all_reduce(tensor)
        return tensor / world_size

    def distribute(module: torch.nn.Module, *, some_unused: bool = False) -> torch.nn.Module:
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(
            module, device_ids=devices, broadcast_buffers=False, find_unused_parameters=some_unused
        )

    return Parallel(context.get_world_rank(), world_size, device, distribute, average)
