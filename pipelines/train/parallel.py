"""Build a worker's `Parallel` from the configuration: DDP and FSDP2 over torch.distributed."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from presto_core.config.sections import LoopConfig, ParallelConfig
from presto_core.networks.compilation import compile_blocks
from presto_core.networks.network import Network
from presto_core.networks.precision import round_matrices
from presto_core.training.parallel import Parallel


def make_single_process(loop: LoopConfig, device: torch.device = torch.device("cpu")) -> Parallel:
    """Return the `Parallel` of the only process of a run, without a process group."""

    def distribute(module: nn.Module, *, name: str, some_unused: bool = False) -> nn.Module:
        return _prepare_blocks(module, loop)

    def prepare_frozen(module: nn.Module, *, name: str, is_shared: bool = False) -> None:
        _round_matrices(module, loop, is_shared=is_shared)
        _compile_blocks(module, loop)

    return Parallel(
        device=device, micro_batch_size=loop.micro_batch_size, distribute=distribute, prepare_frozen=prepare_frozen
    )


def make_process_group(device: torch.device, loop: LoopConfig, config: ParallelConfig | None = None) -> Parallel:
    """Return the `Parallel` of this process in the initialized process group: gloo on CPUs, nccl on GPUs.

    Args:
        config: which networks are sharded.
    """
    world_size = distributed.get_world_size()
    if world_size == 1:
        return make_single_process(loop, device)

    def average(tensor: torch.Tensor) -> torch.Tensor:
        distributed.all_reduce(tensor)
        return tensor / world_size

    placement = _Placement(init_device_mesh(device.type, (world_size,)), loop, config or ParallelConfig())
    return Parallel(
        rank=distributed.get_rank(),
        world_size=world_size,
        device=device,
        micro_batch_size=loop.micro_batch_size,
        distribute=placement.distribute,
        prepare_frozen=placement.prepare_frozen,
        average=average,
        set_requires_grad_sync=_set_grad_sync,
    )


@dataclass(frozen=True)
class _Placement:
    """Distributes networks over workers: `replicate` is DDP, `shard` is FSDP2."""

    mesh: DeviceMesh
    loop: LoopConfig
    config: ParallelConfig

    def distribute(self, module: nn.Module, *, name: str, some_unused: bool = False) -> nn.Module:
        _prepare_blocks(module, self.loop)
        if self._is_sharded(name):
            return self._shard(module)
        devices = [torch.cuda.current_device()] if self.mesh.device_type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=some_unused)

    def prepare_frozen(self, module: nn.Module, *, name: str, is_shared: bool = False) -> None:
        # a shard is kept in one dtype, fp32, and gathered in bf16
        _round_matrices(module, self.loop, is_shared=is_shared or self._is_sharded(name))
        _compile_blocks(module, self.loop)
        if self._is_sharded(name):
            self._shard(module, offload=name == "real_score" and self.config.offload_real_score)

    def _is_sharded(self, name: str) -> bool:
        return getattr(self.config, name, "replicate") == "shard"

    def _shard(self, module: nn.Module, *, offload: bool = False) -> nn.Module:
        """Shard a network: each block is gathered when it runs, forward and backward; the rest is one more unit."""
        assert isinstance(module, Network)
        options: dict[str, Any] = {"mesh": self.mesh, "reshard_after_forward": True}
        if self.loop.autocast == "bf16":  # gathered in bf16; kept, summed and updated in fp32
            options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        if offload:
            options["offload_policy"] = CPUOffloadPolicy(pin_memory=self.mesh.device_type == "cuda")
        for block in module.blocks:
            fully_shard(block, **options)
        fully_shard(module, **options)
        module.run_empty_blocks = True
        # tapped activations are views, and nothing here writes to them
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        return module


def _round_matrices(module: nn.Module, loop: LoopConfig, *, is_shared: bool) -> None:
    if loop.autocast == "bf16" and not is_shared:
        round_matrices(module, torch.bfloat16)


def _prepare_blocks(module: nn.Module, loop: LoopConfig) -> nn.Module:
    """Set how the blocks of a trained network run."""
    if isinstance(module, Network):  # the discriminator head is not one, and small
        module.set_activation_checkpointing(loop.activation_checkpointing)
    _compile_blocks(module, loop)
    return module


def _compile_blocks(module: nn.Module, loop: LoopConfig) -> None:
    if loop.compile and isinstance(module, Network):
        compile_blocks(module, setting="loop.compile")


def _set_grad_sync(module: nn.Module, enabled: bool) -> None:
    """Turn DDP's gradient averaging on or off; FSDP2 always averages, since whole gradients cost memory."""
    if isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = enabled  # the flag that DDP's no_sync() toggles
