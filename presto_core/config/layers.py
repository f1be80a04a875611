"""Configuration of layer budgets: how many transformer blocks run at which noise level (METHOD section 4).

Every kind becomes a table over equal-probability bins of the noise distribution in use, from high noise to low.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from presto_core.config.section import Count, Section
from presto_core.errors import UserError

PAPER_DEPTH = 28
# blocks of 28 dropped in five equally likely bins, from high noise to low
PAPER_DROPPED = {"presto_l": (14, 12, 8, 4, 0), "presto_ls": (12, 8, 8, 0, 0)}


class PrestoLBudget(Section):
    """Presto-L's table: 14, 12, 8, 4 and 0 of 28 blocks dropped, scaled to the network's depth."""

    kind: Literal["presto_l"] = "presto_l"


class PrestoLSBudget(Section):
    """Presto-LS's milder table: 12, 8, 8, 0 and 0 of 28 blocks dropped, scaled to the network's depth."""

    kind: Literal["presto_ls"] = "presto_ls"


class UniformBudget(Section):
    """The same number of blocks at every noise level."""

    kind: Literal["uniform"] = "uniform"
    kept: Count
    """Number of blocks that run."""


class FullBudget(Section):
    """Every block at every noise level."""

    kind: Literal["full"] = "full"


class TableBudget(Section):
    """Your own table."""

    kind: Literal["table"] = "table"
    kept: tuple[Count, ...]
    """Number of blocks that run in each bin, from high noise to low."""

    @model_validator(mode="after")
    def _check_kept_ascending(self) -> Self:
        if not self.kept:
            raise ValueError("kept must name the blocks of at least one bin")
        if list(self.kept) != sorted(self.kept):
            raise ValueError(
                f"kept={list(self.kept)} must not decrease: it runs from high noise, few blocks, to low noise"
            )
        return self


BudgetConfig = Annotated[
    PrestoLBudget | PrestoLSBudget | UniformBudget | FullBudget | TableBudget,
    Field(discriminator="kind"),
]


def blocks_per_bin(config: BudgetConfig, depth: int) -> tuple[int, ...]:
    """Blocks of a network of `depth` that a budget keeps in each bin, from high noise to low.

    Raises:
        UserError: the budget does not fit the depth.
    """
    if isinstance(config, TableBudget):
        kept = config.kept
    elif isinstance(config, UniformBudget):
        kept = (config.kept,)
    else:
        dropped = PAPER_DROPPED.get(config.kind, (0,))
        kept = tuple(depth - round(d * depth / PAPER_DEPTH) for d in dropped)
    if max(kept) > depth:
        raise UserError(
            f"budget {list(kept)} runs {max(kept)} blocks and the network has {depth}; keep at most {depth} in each bin"
        )
    return kept


def choose_generator_budget(
    config: BudgetConfig | None, layers_kept: tuple[int, ...] | None, *, papers_kept: tuple[int, ...]
) -> BudgetConfig | None:
    """Return the budget of a generator: its own; else what its layer-distilled model asks for; else none.

    A model with the paper's table for Presto-L asks for the paper's for Presto-LS, one with another table for the same.

    Args:
        config: `steps.budget`.
        layers_kept: blocks per bin of the layer-distilled model that the generator starts from; None without one.
        papers_kept: what the paper's table for Presto-L is for that model.
    """
    if config is not None or layers_kept is None:
        return config
    if layers_kept == papers_kept:
        return PrestoLSBudget()
    return TableBudget(kept=layers_kept)
