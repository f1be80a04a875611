"""One measured claim of the data plane, how it is judged, and how all of them are shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table

from pipelines.console import make_console
from presto_core.metrics.latency import describe_hardware


@dataclass(frozen=True)
class Finding:
    """A value relative to another of the same run.

    Attributes:
        wanted: the ratio's bound; None only tells.
        bound: whether the ratio must be at least or at most `wanted`.
    """

    what: str
    value: float
    unit: str
    against: str
    against_value: float
    wanted: float | None = None
    bound: Literal["at least", "above", "at most"] = "at least"

    @property
    def ratio(self) -> float:
        return self.value / self.against_value

    @property
    def is_met(self) -> bool | None:
        if self.wanted is None:
            return None
        if self.bound == "at most":
            return self.ratio <= self.wanted
        return self.ratio > self.wanted if self.bound == "above" else self.ratio >= self.wanted


def show(findings: Sequence[Finding], notes: Sequence[str]) -> None:
    """All findings as one table, what was left out of their times below it."""
    table = Table(title=f"data plane, {describe_hardware()['device']}, S3 server on the same machine")
    for name in ("what", "value", "against", "value", "ratio", "wanted", "met"):
        table.add_column(name, justify="left" if name in ("what", "against", "met") else "right")
    for row in findings:
        wanted = "" if row.wanted is None else f"{_SIGNS[row.bound]} {row.wanted:g}"
        verdict = {None: "", True: "[green]yes", False: "[red]no"}[row.is_met]
        values = (f"{row.value:.3g} {row.unit}", row.against, f"{row.against_value:.3g} {row.unit}")
        table.add_row(row.what, *values, f"{row.ratio:.3f}", wanted, verdict)
    console = make_console()
    console.print(table)
    for note in notes:
        console.print(note, style="dim", highlight=False)


def save(findings: Sequence[Finding], notes: Sequence[str], path: Path) -> None:
    """The same as JSON."""
    rows = [asdict(row) | {"ratio": row.ratio, "met": row.is_met} for row in findings]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"hardware": describe_hardware(), "findings": rows, "notes": list(notes)}, indent=2) + "\n"
    )


_SIGNS = {"at least": "≥", "above": ">", "at most": "≤"}
