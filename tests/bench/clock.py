"""Medians of alternating measurements, so that a busy moment of the machine hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Comparison:
    """One line of the table: how long something takes, relative to something else in the same run.

    Attributes:
        flop_ratio: what the ratio would be if time followed floating-point operations alone.
    """

    what: str
    ms: float
    against: str
    against_ms: float
    flop_ratio: float | None = None

    @property
    def ratio(self) -> float:
        return self.ms / self.against_ms


def alternate(calls: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Median milliseconds of each call; all are called once before and then in turn, `rounds` times."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    return {name: 1e3 * median(values) for name, values in times.items()}
