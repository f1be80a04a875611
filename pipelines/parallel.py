"""Where a worker's `Parallel` is made from the configuration: how one process of a run relates to the others."""

from __future__ import annotations

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from presto_core.config.sections import LoopConfig
from presto_core.training.parallel import Parallel


def in_process(loop: LoopConfig) -> Parallel:
    """The only process of a run, without a group."""
    return Parallel(micro_batch_size=loop.micro_batch_size)


def in_group(device: torch.device, loop: LoopConfig) -> Parallel:
    """This process's place in the group that torch.distributed has been told of: gloo on CPUs, nccl on GPUs."""
    world_size = distributed.get_world_size()
    if world_size == 1:
        return Parallel(device=device, micro_batch_size=loop.micro_batch_size)

    def average(tensor: torch.Tensor) -> torch.Tensor:
        distributed.all_reduce(tensor)
        return tensor / world_size

    def distribute(module: nn.Module, *, some_unused: bool = False) -> nn.Module:
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(
            module, device_ids=devices, broadcast_buffers=False, find_unused_parameters=some_unused
        )

    return Parallel(
        rank=distributed.get_rank(),
        world_size=world_size,
        device=device,
        micro_batch_size=loop.micro_batch_size,
        distribute=distribute,
        average=average,
        synchronise=_synchronise,
    )


def _synchronise(module: nn.Module, on: bool) -> None:
    if isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = on  # what DDP's own no_sync() turns off and on again
