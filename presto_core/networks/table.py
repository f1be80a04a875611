"""The table of networks: the only list of network classes, by the `kind` that a model card names.

A new class is one file that implements `Network` and one row here. Read without PyTorch, which a row imports when it
builds: plans and configuration start without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from presto_core.config.section import Section
from presto_core.config.sections import NetworkConfig
from presto_core.errors import UserError
from presto_core.networks import flops
from presto_core.networks.flops import LatentShape

if TYPE_CHECKING:
    from presto_core.networks.layer_budget import LayerBudget
    from presto_core.networks.network import Network

DEFAULT_KIND = "dit"  # of model cards that name none


@dataclass(frozen=True)
class NetworkKind:
    """One row.

    Attributes:
        config: settings of the network, which a model card holds.
        build: an untrained network of these settings for latents of C channels, text of width E, and a budget.
        depth: number of blocks.
        block_flops, outer_flops: forward FLOPs of one sample, of one block and of all that is no block.
    """

    config: type[Section]
    build: Callable[[Any, int, int, LayerBudget | None], Network]
    depth: Callable[[Any], int]
    block_flops: Callable[[Any, LatentShape], float]
    outer_flops: Callable[[Any, LatentShape], float]


def _build_dit(config: NetworkConfig, channels: int, text_dim: int, budget: LayerBudget | None) -> Network:
    from presto_core.networks.dit import DiT

    return DiT.for_budget(config, channels=channels, text_dim=text_dim, budget=budget)


NETWORKS: dict[str, NetworkKind] = {
    "dit": NetworkKind(NetworkConfig, _build_dit, lambda c: c.depth, flops.block_flops, flops.outer_flops),
}


def find_network_kind(settings: dict[str, Any]) -> NetworkKind:
    """The row of a model card's network settings.

    Raises:
        UserError: no such kind.
    """
    kind = settings.get("kind", DEFAULT_KIND)
    if kind not in NETWORKS:
        raise UserError(f"network kind {kind!r} is not known; this version has {', '.join(sorted(NETWORKS))}")
    return NETWORKS[kind]


def kind_of(config: Section) -> NetworkKind:
    """The row whose settings class this is."""
    return next(kind for kind in NETWORKS.values() if type(config) is kind.config)


def network_depth(settings: dict[str, Any]) -> int:
    """Number of blocks of a model card's network."""
    kind = find_network_kind(settings)
    return kind.depth(kind.config(**settings))
