"""Sizes of a network that a plan needs: by formula for Presto's own, counted without data for an imported one."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from presto_core.config.diffusers_network import DiffusersNetworkConfig
from presto_core.config.sections import LoraConfig, NetworkConfig
from presto_core.networks import flops
from presto_core.networks.flops import LatentShape
from presto_core.networks.table import kind_of

if TYPE_CHECKING:
    from presto_core.networks.meta_costs import Costs

PlannedNetwork = NetworkConfig | DiffusersNetworkConfig


def count_blocks(network: PlannedNetwork) -> int:
    return kind_of(network).depth(network)


def find_width(network: PlannedNetwork) -> int:
    """Return the features of a token after a block."""
    if isinstance(network, NetworkConfig):
        return network.dim
    from presto_core.networks.families import find_family

    return find_family(network.transformer_class).width_of(network.transformer)


def count_activations(network: PlannedNetwork, shape: LatentShape) -> int:
    """Return the features of all tokens of a sample: the input of a block."""
    if isinstance(network, NetworkConfig):
        return network.dim * flops.num_tokens(network, shape)
    from presto_core.networks.families import find_family

    family, settings = find_family(network.transformer_class), network.transformer
    return find_width(network) * (shape.frames // settings.get("patch_size", 1) + family.prefix_of(settings))


def num_block_parameters(network: PlannedNetwork, shape: LatentShape) -> int:
    if isinstance(network, NetworkConfig):
        return flops.num_block_parameters(network)
    return _count(network, shape).block_parameters


def num_parameters(network: PlannedNetwork, shape: LatentShape) -> int:
    """Return the parameters of a network without a budget embedding."""
    if isinstance(network, NetworkConfig):
        return flops.num_parameters(network, shape)
    costs = _count(network, shape)
    return count_blocks(network) * costs.block_parameters + costs.outer_parameters


def num_trained_parameters(network: PlannedNetwork, shape: LatentShape, lora: LoraConfig) -> int:
    """Return the parameters that a run changes of each trained network: all, or those of adapters."""
    if not lora.rank:
        return num_parameters(network, shape)
    return _count_adapters(network.model_dump_json(), type(network), shape, lora.model_dump_json())


@lru_cache(maxsize=32)
def _count_adapters(settings: str, kind: type[PlannedNetwork], shape: LatentShape, lora: str) -> int:
    import torch

    from presto_core.networks.adapters import add_adapters

    network = kind.model_validate_json(settings)
    with torch.device("meta"):
        built = kind_of(network).build(network, shape.channels, shape.text_dim, None)
        adapted = add_adapters(built, LoraConfig.model_validate_json(lora))
    assert adapted.trained_keys is not None
    return sum(adapted.get_parameter(name).numel() for name in adapted.trained_keys)


def _count(network: DiffusersNetworkConfig, shape: LatentShape) -> Costs:
    from presto_core.networks.meta_costs import count_costs

    return count_costs(network, shape.frames)
