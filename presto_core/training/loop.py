"""The training loop: every training stage runs its `Algorithm` here, on one worker or many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from presto_core.config.sections import LoopConfig
from presto_core.training.divergence import (
    DivergenceError,
    any_rank_true,
    describe_divergence,
    has_non_finite,
    record_noise_levels,
)
from presto_core.training.meter import Meter
from presto_core.training.parallel import SINGLE_PROCESS, Parallel
from presto_core.training.state import Algorithm, Batch, PhasedAlgorithm, make_step_rng


@dataclass
class Hooks:
    """Callbacks of the loop.

    Attributes:
        after_step: called after every step, on every rank.
        log: called every `log_every` steps with the metrics averaged over those steps and all workers.
        checkpoint: called when the state is due to be saved, on every rank.
        should_stop: True on any rank ends the run early on all ranks, after a checkpoint.
    """

    after_step: Callable[[], None] = lambda: None
    log: Callable[[int, dict[str, float]], None] = lambda step, metrics: None
    checkpoint: Callable[[], None] = lambda: None
    should_stop: Callable[[], bool] = lambda: False


def train(
    algorithm: Algorithm,
    batches: Iterator[Batch],
    *,
    seed: int,
    config: LoopConfig,
    parallel: Parallel = SINGLE_PROCESS,
    hooks: Hooks | None = None,
) -> None:
    """Run an algorithm from its current state to its last step, or until `hooks.should_stop`.

    Args:
        batches: starts at `algorithm.state.cursor`.

    Raises:
        DivergenceError: on all ranks; names loss, rank, noise levels, step and the step of the last good checkpoint.
    """
    hooks, state = hooks or Hooks(), algorithm.state
    meter, saved_step = Meter(state.pending), state.total_step
    with record_noise_levels(state.networks) as levels:
        while state.total_step < algorithm.total_steps:
            with meter.time_data_wait():
                batch = next(batches)
            rng = make_step_rng(seed, total_step=state.total_step, device=parallel.device)
            phase = algorithm.phase.value if isinstance(algorithm, PhasedAlgorithm) else ""
            metrics = algorithm.update(batch, generator=rng)
            diverged, stop = any_rank_true(parallel, has_non_finite(metrics, parallel.device), hooks.should_stop())
            if diverged:
                raise DivergenceError(
                    _format_divergence(describe_divergence(metrics, levels, parallel), state.total_step, saved_step)
                )
            state.total_step += 1
            state.cursor = batch.cursor
            meter.add(metrics, phase)
            with meter.exclude_time():
                hooks.after_step()
            is_last = state.total_step == algorithm.total_steps
            if is_last or state.total_step % config.log_every == 0:
                hooks.log(state.total_step, meter.pop_means(parallel))
            if is_last or stop or state.total_step % config.checkpoint_every == 0:
                state.pending = meter.reduce(parallel)
                hooks.checkpoint()
                saved_step = state.total_step
            if stop:
                return


def _format_divergence(description: str, total_step: int, saved_step: int) -> str:
    last_checkpoint = f"the last good checkpoint is step {saved_step}" if saved_step else "there is no checkpoint yet"
    return (
        f"{description} (total_step {total_step}), the step is discarded, {last_checkpoint}; "
        "lower the learning rate or the loss weights, or check the data (presto dataset verify), and run again"
    )
