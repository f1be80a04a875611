"""Costs of a diffusers transformer, counted on tensors without data: neither weights nor a device are needed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from presto_core.config.diffusers_network import DiffusersNetworkConfig
from presto_core.diffusion.conditioning import UNKNOWN_KEY, Conditioning
from presto_core.networks.diffusers_network import DiffusersNetwork
from presto_core.networks.families import find_family, rotary_tables

PROBE_DEPTH = 2  # the cost of a block is that of two blocks without that of one


@dataclass(frozen=True)
class Costs:
    """Per sample and forward pass; matrix products and attention count, with two FLOPs per multiply-add.

    Attributes:
        block_flops, outer_flops: of one block, and of everything else.
        block_parameters, outer_parameters: weights of one block, and of everything else.
    """

    block_flops: float
    outer_flops: float
    block_parameters: int
    outer_parameters: int


def count_costs(config: DiffusersNetworkConfig, frames: int) -> Costs:
    """Count the costs of a network for clips of so many latent frames.

    Raises:
        UserError: diffusers is not installed or has no such class.
        ValueError: the network has no conditioner, so that its conditions are not known.
    """
    if not config.conditioner:
        raise ValueError(f"{config.transformer_class} has no conditioner")
    return _count(json.dumps(config.model_dump(mode="json"), sort_keys=True), frames)


def count_saved_bytes(config: DiffusersNetworkConfig, frames: int, *, bf16: bool) -> tuple[float, float]:
    """Return the bytes that one block, and everything else, keeps per sample for the backward pass.

    Raises: as `count_costs`.
    """
    if not config.conditioner:
        raise ValueError(f"{config.transformer_class} has no conditioner")
    return _count_saved(json.dumps(config.model_dump(mode="json"), sort_keys=True), frames, bf16)


@lru_cache(maxsize=8)
def _count(settings: str, frames: int) -> Costs:
    network = _build(settings)
    one, two = (_count_flops(network, frames, budget) for budget in (1, PROBE_DEPTH))
    block = sum(p.numel() for p in network.blocks[0].parameters())
    total = sum(p.numel() for p in network.parameters())
    return Costs(two - one, 2 * one - two, block, total - PROBE_DEPTH * block)


def _build(settings: str) -> DiffusersNetwork:
    """Build the network with two blocks and no data."""
    config = DiffusersNetworkConfig(**json.loads(settings))
    family = find_family(config.transformer_class)
    shallow = config.model_copy(update={"transformer": {**config.transformer, family.depth: PROBE_DEPTH}, "frozen": ()})
    with torch.device("meta"):
        network = DiffusersNetwork(shallow)
    # transformers replaces torch.linspace while it loads a model, and if two threads do, for good: on the CPU then
    return network.to("meta")


@torch.no_grad()
def _count_flops(network: DiffusersNetwork, frames: int, budget: int) -> float:
    # the counter does not support fused attention kernels
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _run(network, frames, budget, rows=1)
    return float(counter.get_total_flops())


def _run(network: DiffusersNetwork, frames: int, budget: int, *, rows: int) -> None:
    """Run a forward pass on tensors of no value, of the default device."""
    config = network.config
    assert network.conditioner is not None
    tokens, width = config.text_tokens, network.conditioner.text_dim
    channels = int(config.transformer[network.family.channels])
    cond = Conditioning(
        pooled=torch.empty(rows, width), tokens=torch.empty(rows, tokens, width),
        mask=torch.ones(rows, tokens, dtype=torch.bool), tempo_bpm=torch.empty(rows),
        key=torch.full((rows,), UNKNOWN_KEY), keep=torch.ones(rows, dtype=torch.bool), timing=torch.empty(rows, 2),
    )  # fmt: skip
    network(torch.empty(rows, channels, frames), torch.empty(rows), cond, budget)


@lru_cache(maxsize=8)
def _count_saved(settings: str, frames: int, bf16: bool) -> tuple[float, float]:
    rotary_tables.cache_clear()  # tensors without data must not meet those of a network that computes
    try:
        network = _build(settings)
        with FakeTensorMode():  # as on a CPU, with its kernels and autocast
            _move_without_data(network)
            # of a second row: copies of weights in bf16 are kept once, whatever the batch
            one, two = (
                _count_saved_bytes(network, frames, budget, rows=2, bf16=bf16)
                - _count_saved_bytes(network, frames, budget, rows=1, bf16=bf16)
                for budget in (1, PROBE_DEPTH)
            )
    finally:
        rotary_tables.cache_clear()
    return two - one, 2 * one - two


def _move_without_data(network: nn.Module) -> None:
    """Replace weights and buffers by those of the CPU; nn.Module.to cannot, in the mode of tensors without data."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.empty(parameter.shape, device="cpu")
            setattr(module, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu"))


def _count_saved_bytes(network: nn.Module, frames: int, budget: int, *, rows: int, bf16: bool) -> float:
    """Return the bytes that autograd keeps of a forward pass, each storage once, without weights."""
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    storages: dict[int, int] = {}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)  # so that no storage is counted for another one
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            storages[storage._cdata] = storage.nbytes()
        return tensor

    assert isinstance(network, DiffusersNetwork)
    with saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        _run(network, frames, budget, rows=rows)
    return float(sum(storages.values()))
