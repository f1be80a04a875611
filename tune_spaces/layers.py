"""Layer budgets: tables that keep more blocks at lower noise, for a fraction of the full FLOPs (METHOD section 4)."""

from __future__ import annotations

from typing import Any

from tune_spaces.domains import Choice, Space

BINS = 5
FLOPS_FRACTIONS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the FLOPs of all blocks, averaged over bins
TILTS = (0.0, 0.5, 1.0)  # 0: the same in every bin; 1: as steep as the depth allows


def make_budget_table(depth: int, *, flops_fraction: float, tilt: float, bins: int = BINS) -> tuple[int, ...]:
    """Return the blocks kept in each bin, from high noise to low: non-decreasing, within 1 ... depth."""
    # symmetric around the mean, so that the tilt does not change the mean
    swing = tilt * min(1.0 - flops_fraction, flops_fraction - 1.0 / depth)
    shares = [flops_fraction + swing * (2 * i / (bins - 1) - 1) for i in range(bins)]
    return tuple(min(depth, max(1, round(share * depth))) for share in shares)


def list_budgets(depth: int) -> tuple[dict[str, Any], ...]:
    """Return the distinct tables, fewest FLOPs first."""
    tables = {
        make_budget_table(depth, flops_fraction=fraction, tilt=tilt): None
        for fraction in FLOPS_FRACTIONS
        for tilt in TILTS
    }
    return tuple({"kind": "table", "kept": list(kept)} for kept in sorted(tables, key=lambda kept: (sum(kept), kept)))


def make_layers_space(depth: int) -> Space:
    """Return the space of budgets for Presto-L training and for a generator that drops blocks (Presto-LS)."""
    tables = Choice(list_budgets(depth))
    return {"layers.budget": tables, "steps.budget": tables}


def make_few_layers_space(depth: int) -> Space:
    """Return a grid of four tables: all blocks, and 0.8, 0.7 and 0.6 of their FLOPs."""
    kept = [make_budget_table(depth, flops_fraction=fraction, tilt=1.0) for fraction in (1.0, 0.8, 0.7, 0.6)]
    tables = Choice(tuple({"kind": "table", "kept": list(k)} for k in dict.fromkeys(kept)))
    return {"layers.budget": tables, "steps.budget": tables}
