"""The only training loop: every stage that trains runs its `Algorithm` here, on one worker or many."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from presto_core.config.sections import LoopConfig
from presto_core.training.optim import DivergenceError
from presto_core.training.parallel import ALONE, Parallel
from presto_core.training.state import Algorithm, Batch, step_generator


@dataclass
class Hooks:
    """What the surroundings want to hear.

    Attributes:
        log: every `log_every` steps, with the metrics averaged over those steps and all workers.
        checkpoint: when the state is due to be saved; every rank calls it.
        should_stop: True ends the run early, after a checkpoint.
    """

    log: Callable[[int, dict[str, float]], None] = lambda step, metrics: None
    checkpoint: Callable[[], None] = lambda: None
    should_stop: Callable[[], bool] = lambda: False


def train(
    algorithm: Algorithm,
    batches: Iterator[Batch],
    *,
    seed: int,
    config: LoopConfig,
    parallel: Parallel = ALONE,
    hooks: Hooks | None = None,
) -> None:
    """Run an algorithm from where its state stands to its last step.

    Args:
        batches: starts at `algorithm.state.cursor`.

    Raises:
        DivergenceError: naming step and last good checkpoint's step.
    """
    hooks, state, meter = hooks or Hooks(), algorithm.state, Meter()
    saved_at = state.total_step
    while state.total_step < algorithm.total_steps:
        with meter.waiting():
            batch = next(batches)
        rng = step_generator(seed, total_step=state.total_step, device=parallel.device)
        try:
            metrics = algorithm.update(batch, generator=rng)
        except DivergenceError as error:
            raise DivergenceError(
                f"{error} (total_step {state.total_step}, rank {parallel.rank}); the last good checkpoint is of "
                f"step {saved_at}: lower the learning rate or the loss weights, then run again"
            ) from None
        state.total_step += 1
        state.cursor = batch.cursor
        meter.add(metrics)
        last = state.total_step == algorithm.total_steps
        if last or state.total_step % config.log_every == 0:
            hooks.log(state.total_step, meter.drain(parallel))
        stop = hooks.should_stop()
        if last or stop or state.total_step % config.checkpoint_every == 0:
            hooks.checkpoint()
            saved_at = state.total_step
        if stop:
            return


@dataclass
class Meter:
    """Means of what was measured since the last look; values stay on their device until then."""

    values: dict[str, list[Tensor]] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    steps: int = 0

    def waiting(self) -> _Waiting:
        """Context in which time counts as waiting for data."""
        return _Waiting(self)

    def add(self, metrics: dict[str, Tensor]) -> None:
        self.steps += 1
        for name, value in metrics.items():
            self.values.setdefault(name, []).append(value)

    def drain(self, parallel: Parallel) -> dict[str, float]:
        """Means over steps and rows of all workers; what none saw is left out. Starts afresh."""
        seconds = time.perf_counter() - self.started
        names = sorted(self.values)
        means = _means([torch.cat([v.float().flatten() for v in self.values[name]]) for name in names], parallel)
        found = {name: mean for name, mean in zip(names, means) if not math.isnan(mean)}
        timing = {"step_seconds": seconds / max(self.steps, 1), "data_wait_fraction": self.waited / max(seconds, 1e-9)}
        self.values, self.started, self.waited, self.steps = {}, time.perf_counter(), 0.0, 0
        return found | timing


class _Waiting:
    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def __enter__(self) -> None:
        self.since = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.meter.waited += time.perf_counter() - self.since


def _means(observed: list[Tensor], parallel: Parallel) -> list[float]:
    """Mean of each over all workers' observations that are not NaN (a noise bin may be empty in a batch)."""
    if not observed:
        return []
    totals = torch.stack([torch.stack([v.nansum(), (~v.isnan()).sum().float()]) for v in observed])
    sums = parallel.average(totals.to(parallel.device))
    return (sums[:, 0] / sums[:, 1]).tolist()
