"""Means of what a run measures between two logged rows: over steps and workers, and across a stop and a resume."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from presto_core.training.parallel import Parallel


def is_time(name: str) -> bool:
    """Whether a metric says how long something took, so that no two runs agree on it."""
    return name.endswith("step_seconds") or name == "data_wait_fraction"


class Meter:
    """What was measured since the last row; values stay on their device until they are asked for.

    Args:
        pending: sums and counts that an earlier life of the run left, over all workers.
    """

    def __init__(self, pending: dict[str, tuple[float, float]]) -> None:
        self.pending = pending
        self._start_afresh()

    def _start_afresh(self) -> None:
        self.values: dict[str, list[Tensor]] = {}
        self.started, self.waited, self.paused, self.steps = time.perf_counter(), 0.0, 0.0, 0
        self.step_began, self.phases = self.started, dict[str, list[float]]()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in the block counts as waiting for data."""
        self.step_began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - self.step_began

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Time in the block counts as none of the run's own."""
        since = time.perf_counter()
        yield
        self.paused += time.perf_counter() - since

    def add(self, metrics: dict[str, Tensor], phase: str = "") -> None:
        """A step is done, of a phase where steps differ; it began with the wait for its data."""
        self.steps += 1
        if phase:
            self.phases.setdefault(phase, []).append(time.perf_counter() - self.step_began)
        for name, value in metrics.items():
            self.values.setdefault(name, []).append(value)

    def settle(self, parallel: Parallel) -> dict[str, tuple[float, float]]:
        """Sums and counts so far over all workers, for a checkpoint; every rank calls it."""
        names = sorted(self.values)
        local = [_sum_and_count(self.values[name], parallel.device) for name in names]
        if names:
            sums = parallel.average(torch.stack(local)) * parallel.world_size  # true on any number of workers
            for name, (total, count) in zip(names, sums.tolist()):
                before = self.pending.get(name, (0.0, 0.0))
                self.pending[name] = (before[0] + total, before[1] + count)
        self.values = {}
        return dict(self.pending)

    def drain(self, parallel: Parallel) -> dict[str, float]:
        """Means over steps and rows of all workers; what none saw is left out. Starts afresh; every rank calls it."""
        seconds = time.perf_counter() - self.started - self.paused
        sums = self.settle(parallel)
        means = {name: total / count for name, (total, count) in sorted(sums.items()) if count}
        means["step_seconds"] = seconds / max(self.steps, 1)
        means["data_wait_fraction"] = self.waited / max(seconds, 1e-9)
        means |= {f"{phase}_step_seconds": sum(times) / len(times) for phase, times in self.phases.items()}
        self.pending = {}
        self._start_afresh()
        return means


def _sum_and_count(values: list[Tensor], device: torch.device) -> Tensor:
    """Sum and number of the values that are not NaN (a noise bin may be empty in a batch): [2].

    In double precision sums of some thousand float32 do not depend on where a checkpoint cuts them in two.
    """
    joined = torch.cat([v.to(device, torch.float64).flatten() for v in values])
    return torch.stack([joined.nan_to_num().sum(), (~joined.isnan()).sum().double()])
