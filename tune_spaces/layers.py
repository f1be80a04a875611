"""Layer budgets: tables that keep more blocks as noise falls, by share of a full network's work (METHOD section 4)."""

from __future__ import annotations

from typing import Any

from tune_spaces.domains import Choice, Space

BINS = 5
WORK = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the FLOPs of all blocks, in the mean over bins
TILTS = (0.0, 0.5, 1.0)  # 0: alike in every bin; 1: as much steeper as the depth allows


def table(depth: int, *, work: float, tilt: float, bins: int = BINS) -> tuple[int, ...]:
    """Blocks kept in each bin, from high noise to low; never falling, within 1 ... depth."""
    # as far up as down from the mean, so that the mean stays what it is
    swing = tilt * min(1.0 - work, work - 1.0 / depth)
    shares = [work + swing * (2 * i / (bins - 1) - 1) for i in range(bins)]
    return tuple(min(depth, max(1, round(share * depth))) for share in shares)


def budgets(depth: int) -> tuple[dict[str, Any], ...]:
    """Tables that differ, the least work first."""
    found = {table(depth, work=work, tilt=tilt): None for work in WORK for tilt in TILTS}
    return tuple({"kind": "table", "kept": list(kept)} for kept in sorted(found, key=lambda kept: (sum(kept), kept)))


def layers(depth: int) -> Space:
    """Of Presto-L's training, and of a generator that drops blocks (Presto-LS, or S with the base's)."""
    tables = Choice(budgets(depth))
    return {"layers.budget": tables, "steps.budget": tables}


def few_layers(depth: int) -> Space:
    """Four tables for a grid: all blocks, and 0.8, 0.7 and 0.6 of their work."""
    kept = [table(depth, work=work, tilt=1.0) for work in (1.0, 0.8, 0.7, 0.6)]
    tables = Choice(tuple({"kind": "table", "kept": list(k)} for k in dict.fromkeys(kept)))
    return {"layers.budget": tables, "steps.budget": tables}
