"""Layer budgets: tables that keep more blocks as noise falls, by share of a full network's work (METHOD section 4)."""

from __future__ import annotations

from typing import Any

from tune_spaces.domains import Choice, Space

BINS = 5
FLOPS_FRACTIONS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the FLOPs of all blocks, in the mean over bins
TILTS = (0.0, 0.5, 1.0)  # 0: alike in every bin; 1: as much steeper as the depth allows


def make_budget_table(depth: int, *, flops_fraction: float, tilt: float, bins: int = BINS) -> tuple[int, ...]:
    """Blocks kept in each bin, from high noise to low; never falling, within 1 ... depth."""
    # as far up as down from the mean, so that the mean stays what it is
    swing = tilt * min(1.0 - flops_fraction, flops_fraction - 1.0 / depth)
    shares = [flops_fraction + swing * (2 * i / (bins - 1) - 1) for i in range(bins)]
    return tuple(min(depth, max(1, round(share * depth))) for share in shares)


def list_budgets(depth: int) -> tuple[dict[str, Any], ...]:
    """Tables that differ, the least work first."""
    tables = {
        make_budget_table(depth, flops_fraction=fraction, tilt=tilt): None
        for fraction in FLOPS_FRACTIONS
        for tilt in TILTS
    }
    return tuple({"kind": "table", "kept": list(kept)} for kept in sorted(tables, key=lambda kept: (sum(kept), kept)))


def make_layers_space(depth: int) -> Space:
    """Of Presto-L's training, and of a generator that drops blocks (Presto-LS, or S with the base's)."""
    tables = Choice(list_budgets(depth))
    return {"layers.budget": tables, "steps.budget": tables}


def make_few_layers_space(depth: int) -> Space:
    """Four tables for a grid: all blocks, and 0.8, 0.7 and 0.6 of their work."""
    kept = [make_budget_table(depth, flops_fraction=fraction, tilt=1.0) for fraction in (1.0, 0.8, 0.7, 0.6)]
    tables = Choice(tuple({"kind": "table", "kept": list(k)} for k in dict.fromkeys(kept)))
    return {"layers.budget": tables, "steps.budget": tables}
