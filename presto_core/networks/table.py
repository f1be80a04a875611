"""The table of network classes by the `kind` in a model card; the only list of them.

A new class needs one file that implements `Network` and one row here. A row imports PyTorch only when it builds a
network, so `presto plan` and configuration start without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from presto_core.config.diffusers_network import DiffusersNetworkConfig
from presto_core.config.section import Section
from presto_core.config.sections import NetworkConfig
from presto_core.errors import UserError
from presto_core.networks import flops
from presto_core.networks.flops import LatentShape

if TYPE_CHECKING:
    from presto_core.networks.layer_budget import LayerBudget
    from presto_core.networks.network import Network

DEFAULT_KIND = "dit"  # for model cards without a kind


@dataclass(frozen=True)
class NetworkKind:
    """One row of the table.

    Attributes:
        config: class of the network's settings in a model card.
        build: returns an untrained network for settings, latents of C channels, text of width E, and a budget.
        depth: returns the number of blocks.
        block_flops, outer_flops: return the forward FLOPs per sample of one block, and of everything else.
    """

    config: type[Section]
    build: Callable[[Any, int, int, LayerBudget | None], Network]
    depth: Callable[[Any], int]
    block_flops: Callable[[Any, LatentShape], float]
    outer_flops: Callable[[Any, LatentShape], float]


def _build_dit(config: NetworkConfig, channels: int, text_dim: int, budget: LayerBudget | None) -> Network:
    from presto_core.networks.dit import DiT

    return DiT.for_budget(config, channels=channels, text_dim=text_dim, budget=budget)


def _build_diffusers(
    config: DiffusersNetworkConfig, channels: int, text_dim: int, budget: LayerBudget | None
) -> Network:
    from presto_core.networks.diffusers_network import DiffusersNetwork

    return DiffusersNetwork.for_budget(config, budget)


def _count_diffusers_blocks(config: DiffusersNetworkConfig) -> int:
    from presto_core.networks.families import find_family

    return int(config.transformer[find_family(config.transformer_class).depth])


def _count_diffusers_block(config: DiffusersNetworkConfig, shape: LatentShape) -> float:
    from presto_core.networks.meta_costs import count_costs

    # 0 is not known: the conditions of such a network are its own arguments, and no teacher is imported so
    return count_costs(config, shape.frames).block_flops if config.conditioner else 0.0


def _count_diffusers_rest(config: DiffusersNetworkConfig, shape: LatentShape) -> float:
    from presto_core.networks.meta_costs import count_costs

    return count_costs(config, shape.frames).outer_flops if config.conditioner else 0.0


NETWORKS: dict[str, NetworkKind] = {
    "dit": NetworkKind(NetworkConfig, _build_dit, lambda c: c.depth, flops.block_flops, flops.outer_flops),
    "diffusers": NetworkKind(
        DiffusersNetworkConfig, _build_diffusers, _count_diffusers_blocks, _count_diffusers_block, _count_diffusers_rest
    ),
}


def find_network_kind(settings: dict[str, Any]) -> NetworkKind:
    """Return the row for a model card's network settings.

    Raises:
        UserError: the kind is unknown.
    """
    kind = settings.get("kind", DEFAULT_KIND)
    if kind not in NETWORKS:
        raise UserError(f"network kind {kind!r} is unknown; use one of {', '.join(sorted(NETWORKS))}")
    return NETWORKS[kind]


def read_settings(settings: dict[str, Any]) -> Section:
    """A model card's network settings as the settings class of their kind."""
    kind = find_network_kind(settings).config
    return kind(**{name: value for name, value in settings.items() if name != "kind" or name in kind.model_fields})


def kind_of(config: Section) -> NetworkKind:
    """Return the row with the class of `config`."""
    return next(kind for kind in NETWORKS.values() if type(config) is kind.config)


def network_depth(settings: dict[str, Any]) -> int:
    """Return the number of blocks of a model card's network."""
    kind = find_network_kind(settings)
    return kind.depth(read_settings(settings))
