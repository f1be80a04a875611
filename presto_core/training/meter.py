"""Means of a run's metrics between two logged rows: over steps and workers, and across a stop and a resume."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from presto_core.training.parallel import Parallel


class Meter:
    """Metrics since the last logged row; values stay on their device until they are reduced.

    Args:
        pending: sums and counts over all workers, restored from the checkpoint of an earlier attempt.
    """

    def __init__(self, pending: dict[str, tuple[float, float]]) -> None:
        self.pending = pending
        self._reset()

    def _reset(self) -> None:
        self.values: dict[str, list[Tensor]] = {}
        self.start_time, self.data_wait_s, self.excluded_s, self.steps = time.perf_counter(), 0.0, 0.0, 0
        self.step_start, self.phases = self.start_time, dict[str, list[float]]()

    @contextmanager
    def time_data_wait(self) -> Iterator[None]:
        """Count the time in the context as waiting for data."""
        self.step_start = time.perf_counter()
        yield
        self.data_wait_s += time.perf_counter() - self.step_start

    @contextmanager
    def exclude_time(self) -> Iterator[None]:
        """Exclude the time in the context from the step time."""
        start = time.perf_counter()
        yield
        self.excluded_s += time.perf_counter() - start

    def add(self, metrics: dict[str, Tensor], phase: str = "") -> None:
        """Record a finished step, which began with the wait for its data; `phase` is its kind, if steps differ."""
        self.steps += 1
        if phase:
            self.phases.setdefault(phase, []).append(time.perf_counter() - self.step_start)
        for name, value in metrics.items():
            self.values.setdefault(name, []).append(value)

    def reduce(self, parallel: Parallel) -> dict[str, tuple[float, float]]:
        """Return the sums and counts so far over all workers, for a checkpoint; every rank calls it."""
        names = sorted(self.values)
        local_sums = [_sum_and_count(self.values[name], parallel.device) for name in names]
        if names:
            sums = parallel.average(torch.stack(local_sums)) * parallel.world_size  # independent of the worker count
            for name, (total, count) in zip(names, sums.tolist()):
                previous = self.pending.get(name, (0.0, 0.0))
                self.pending[name] = (previous[0] + total, previous[1] + count)
        self.values = {}
        return dict(self.pending)

    def pop_means(self, parallel: Parallel) -> dict[str, float]:
        """Return the means over steps and rows of all workers, skipping empty metrics, and reset; all ranks call it."""
        seconds = time.perf_counter() - self.start_time - self.excluded_s
        sums = self.reduce(parallel)
        means = {name: total / count for name, (total, count) in sorted(sums.items()) if count}
        means["step_seconds"] = seconds / max(self.steps, 1)
        means["data_wait_fraction"] = self.data_wait_s / max(seconds, 1e-9)
        means |= {f"{phase}_step_seconds": sum(times) / len(times) for phase, times in self.phases.items()}
        self.pending = {}
        self._reset()
        return means


def _sum_and_count(values: list[Tensor], device: torch.device) -> Tensor:
    """Return the sum and count [2] of the values that are not NaN (a noise bin may be empty in a batch).

    In float64 the sum of a few thousand float32 values does not depend on where a checkpoint splits it.
    """
    flat = torch.cat([v.to(device, torch.float64).flatten() for v in values])
    return torch.stack([flat.nan_to_num().sum(), (~flat.isnan()).sum().double()])
