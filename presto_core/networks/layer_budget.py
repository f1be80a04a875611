"""Layer budgets: how many transformer blocks run at a noise level, and which ones (METHOD section 4).

`budget` always counts the blocks that run. Few run at high noise, which determines only the coarse structure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from presto_core.config.layers import BudgetConfig, blocks_per_bin
from presto_core.config.noise import NoiseDistribution
from presto_core.diffusion.denoiser import Budget
from presto_core.errors import UserError

Mode = Literal["presto", "ase"]


def select_blocks(budget: int, depth: int, mode: Mode = "presto") -> tuple[int, ...]:
    """Return the indices of the blocks that run, in order.

    `presto` always runs the last block and skips from the second-to-last backwards; `ase` (adaptive score estimation,
    an early exit) skips from the last backwards.

    Raises:
        UserError: the budget is not between 1 and the depth.
    """
    check_budgets([budget], depth)
    if mode == "ase":
        return tuple(range(budget))
    return (*range(budget - 1), depth - 1)


def renumber_blocks(names: Iterable[str], prefix: str, kept: Sequence[int]) -> dict[str, str]:
    """Return the names of weights that stay if only the blocks `kept` of the list `prefix` do: new name -> old one."""
    numbers = {f"{prefix}.{old}.": f"{prefix}.{new}." for new, old in enumerate(kept)}
    renamed = {}
    for name in names:
        block = re.match(rf"{re.escape(prefix)}\.\d+\.", name)
        if block is None:
            renamed[name] = name
        elif new := numbers.get(block[0]):
            renamed[new + name[block.end() :]] = name
    return renamed


def check_budgets(budgets: list[int], depth: int) -> None:
    """Check that budgets are between 1 and the depth.

    Raises:
        UserError: a budget is not; names the first one.
    """
    for budget in budgets:
        if not 1 <= budget <= depth:
            raise UserError(f"budget of {budget} blocks does not fit a network of {depth} blocks; use 1 to {depth}")


def list_budgets(budget: Budget) -> list[int]:
    """Return the budget of all samples as [budget], or that of each; reading a tensor waits for its device."""
    if isinstance(budget, Tensor):
        return [int(value) for value in budget.tolist()]
    return [budget] if isinstance(budget, int) else list(budget)


@dataclass(frozen=True)
class LayerBudget:
    """A table from noise level to number of blocks, over equal-probability bins of a noise distribution.

    Attributes:
        kept: blocks that run in each bin, from high noise to low.
        edges: [bins - 1] noise levels between the bins, decreasing; an edge belongs to the bin of higher noise.
        distribution: settings of the distribution whose quantiles are the edges.
        mode: which blocks a budget skips.
        conditioned: whether the network has an embedding of the budget.
    """

    kept: tuple[int, ...]
    edges: tuple[float, ...]
    distribution: dict[str, Any]
    mode: Mode = "presto"
    conditioned: bool = True

    @staticmethod
    def from_distribution(
        noise: NoiseDistribution, config: BudgetConfig, *, depth: int, mode: Mode = "presto", conditioned: bool = True
    ) -> LayerBudget:
        """Build the configured table over equal-probability bins of `noise`.

        A distribution over fewer levels than bins gets a bin per level: the first, the last, and those between evenly.

        Raises:
            UserError: the table does not fit the depth, or its last bin would never be drawn from `noise`.
        """
        kept, levels = blocks_per_bin(config, depth), noise.levels()
        if levels is not None:
            kept, edges = _fit_to_levels(kept, levels)
        else:
            quantiles = torch.arange(len(kept) - 1, 0, -1, dtype=torch.float64) / len(kept)
            edges = tuple(noise.quantile(quantiles).float().tolist())  # in the precision of noise levels
            _check_last_bin_drawn(noise, edges)
        return LayerBudget(kept, edges, noise.to_config(), mode, conditioned)

    def blocks_at(self, sigma: float) -> int:
        """Return the blocks that run at one noise level; reads no tensor, so sampling never waits for the device."""
        level = float(np.float32(sigma))  # fp32 as in `blocks_per_sample`: a level of a grid may be an edge
        return self.kept[sum(level < edge for edge in self.edges)]

    def blocks_per_sample(self, sigma: Tensor) -> Tensor:
        """Return the blocks that run for each sample: sigma [B] fp32 -> [B] int64."""
        edges, kept = (torch.tensor(v, device=sigma.device) for v in (self.edges, self.kept))
        return kept[(sigma[:, None] < edges).sum(dim=1)]

    def list_blocks(self, sigma: Tensor) -> tuple[int, ...]:
        """Return the blocks that run for each sample as numbers of the host: sigma [B] fp32, on the CPU -> B."""
        return tuple(self.blocks_per_sample(sigma).tolist())

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for a manifest; `from_dict` reads it."""
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> LayerBudget:
        """Restore a table from the result of `to_dict`, also after a JSON round trip.

        Raises:
            KeyError, TypeError, ValueError: the data contain no valid table.
        """
        budget = LayerBudget(**data | {"kept": tuple(data["kept"]), "edges": tuple(data["edges"])})
        rising, falling = sorted(budget.kept), sorted(budget.edges, reverse=True)
        if not rising or rising[0] < 1 or list(budget.kept) != rising:
            raise ValueError(f"kept={list(budget.kept)} must be numbers of blocks in non-decreasing order")
        if len(falling) != len(rising) - 1 or list(budget.edges) != falling:
            raise ValueError(f"edges={list(budget.edges)} must be {len(rising) - 1} noise levels in decreasing order")
        return budget


def _fit_to_levels(kept: tuple[int, ...], levels: Tensor) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the table of the bins that equally likely levels fall into, and its edges.

    Args:
        levels: [n] ascending.
    """
    bins, descending = _assign_bins(len(levels), len(kept)), levels.flip(0).float().tolist()
    edges = tuple(level for level, own, below in zip(descending, bins, bins[1:]) if own != below)
    return tuple(kept[b] for b in dict.fromkeys(bins)), edges


def _assign_bins(levels: int, bins: int) -> list[int]:
    """Return the bin of each level, from the highest to the lowest: the first bin is drawn, and so is the last.

    Quantile edges would not do: four levels leave the last of five bins, full depth, without any draw, which confounds
    discrete with continuous inputs (METHOD section 4).
    """
    if levels >= bins:  # the bin of the middle of a level's share of the probability, (i + 1/2) / n
        return [(2 * i + 1) * bins // (2 * levels) for i in range(levels)]
    if levels == 1:
        return [bins - 1]
    return [round(i * (bins - 1) / (levels - 1)) for i in range(levels)]


def _check_last_bin_drawn(noise: NoiseDistribution, edges: tuple[float, ...]) -> None:
    """Check that levels below the last edge have a share of the draws, with a margin for the rounding of an edge."""
    if edges and not float(noise.cdf(torch.tensor([edges[-1] * (1 - 1e-6)], dtype=torch.float64))) > 0:
        raise UserError(
            f"a budget of {len(edges) + 1} bins does not fit {noise!r}: no level is below {edges[-1]:g}, so that the "
            "blocks of its last bin would never run; use fewer bins (layers.budget or steps.budget with kind: table)"
        )
