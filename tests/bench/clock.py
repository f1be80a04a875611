"""Medians of alternating measurements, so that a busy moment of the machine hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles


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


@dataclass(frozen=True)
class PairedComparison:
    """How much faster something is than something else, by the pairs of measurements of one run.

    Attributes:
        seconds, against_seconds: of each round; those of one round were measured one soon after the other.
    """

    what: str
    seconds: list[float]
    against: str
    against_seconds: list[float]

    @property
    def speedup_quartiles(self) -> tuple[float, float, float]:
        """First quartile, median and third quartile over rounds of against / what: above 1 if `what` is faster."""
        ratios = [theirs / ours for ours, theirs in zip(self.seconds, self.against_seconds, strict=True)]
        low, middle, high = quantiles(ratios, n=4, method="inclusive")
        return low, middle, high


def alternate(calls: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Median milliseconds of each call; all are called once before and then in turn, `rounds` times."""
    times = time_rounds(calls, rounds=rounds)
    return {name: 1e3 * median(values) for name, values in times.items()}


def time_rounds(
    calls: Mapping[str, Callable[[], object]], *, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each call by round; all are called once before and then in turn, `rounds` times.

    Args:
        clock: `time.process_time` leaves out the time in which other processes run, if there is one thread.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            began = clock()
            call()
            times[name].append(clock() - began)
    return times
