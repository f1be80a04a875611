"""FLOPs and parameters computed from a network's shape equal those that torch counts."""

from __future__ import annotations

import pytest
import torch

from presto_core.config.sections import NetworkConfig
from presto_core.diffusion.conditioning import Conditioning
from presto_core.networks.dit import DiT
from presto_core.networks.flops import LatentShape, block_flops, num_block_parameters, num_parameters, outer_flops
from tests.core.test_layer_budget import flops

SIZES = [
    (NetworkConfig(dim=32, depth=3, heads=2, patch=2), LatentShape(channels=4, frames=16, text_dim=8, text_tokens=3)),
    (NetworkConfig(dim=64, depth=2, heads=4, patch=1, mlp_ratio=2.6667), LatentShape(64, 33, 384, 40)),
    (NetworkConfig(dim=128, depth=1, heads=4, patch=2, mlp_ratio=4, filter_taps=5), LatentShape(64, 130, 384, 40)),
    (NetworkConfig(dim=32, depth=2, heads=2, spectrum_bins=12), LatentShape(8, 16, 8, 3)),
]


def make_conditions(rows: int, shape: LatentShape) -> Conditioning:
    return Conditioning(
        pooled=torch.randn(rows, shape.text_dim),
        tokens=torch.randn(rows, shape.text_tokens, shape.text_dim),
        mask=torch.ones(rows, shape.text_tokens, dtype=torch.bool),
        tempo_bpm=torch.full((rows,), 120.0),
        key=torch.zeros(rows, dtype=torch.long),
        keep=torch.ones(rows, dtype=torch.bool),
    )


@pytest.mark.parametrize(("network", "shape"), SIZES)
@pytest.mark.parametrize("rows", [1, 3])
def test_flops_of_a_forward_pass(network: NetworkConfig, shape: LatentShape, rows: int):
    net, cond = DiT(network, channels=shape.channels, text_dim=shape.text_dim), make_conditions(rows, shape)
    x = torch.randn(rows, shape.channels, shape.frames)
    with torch.no_grad():
        counted = flops(lambda: net(x, torch.zeros(rows), cond))
        less = flops(lambda: net(x, torch.zeros(rows), cond, 1))
    assert counted == rows * (network.depth * block_flops(network, shape) + outer_flops(network, shape))
    assert counted - less == rows * (network.depth - 1) * block_flops(network, shape)


@pytest.mark.parametrize(("network", "shape"), SIZES)
def test_parameters(network: NetworkConfig, shape: LatentShape):
    net = DiT(network, channels=shape.channels, text_dim=shape.text_dim)
    assert sum(p.numel() for p in net.parameters()) == num_parameters(network, shape)
    assert sum(p.numel() for p in net.blocks[0].parameters()) == num_block_parameters(network)
