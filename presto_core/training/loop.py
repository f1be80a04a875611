"""The training loop: every training stage runs its `Algorithm` here, on one worker or many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from presto_core.config.sections import LoopConfig
from presto_core.training.divergence import StepCheck, record_noise_levels
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
        should_stop: True on any rank ends the run early on all ranks, after a checkpoint; asked at each check of steps.
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
    meter, check, saved_step = Meter(state.pending), StepCheck(parallel), state.total_step
    with record_noise_levels(state.networks) as levels:
        while state.total_step < algorithm.total_steps:
            with meter.time_data_wait():
                batch = next(batches)
            rng = make_step_rng(seed, total_step=state.total_step, device=parallel.device)
            # steps that a GPU runs later have no time of their own
            waits = check.steps_per_check == 1
            phase = algorithm.phase.value if waits and isinstance(algorithm, PhasedAlgorithm) else ""
            metrics = algorithm.update(batch, generator=rng)
            check.add(state.total_step, metrics, levels)
            next_step = state.total_step + 1
            is_last, stop = next_step == algorithm.total_steps, False
            log_due = is_last or next_step % config.log_every == 0
            save_due = is_last or next_step % config.checkpoint_every == 0
            if check.is_due or log_due or save_due:
                stop = check.run(hooks.should_stop(), partial(_describe_step, saved_step=saved_step))
            state.total_step = next_step
            state.cursor = batch.cursor
            meter.add(metrics, phase)
            with meter.exclude_time():
                hooks.after_step()
            if log_due:
                hooks.log(state.total_step, meter.pop_means(parallel))
            if save_due or stop:
                state.pending = meter.reduce(parallel)
                hooks.checkpoint()
                saved_step = state.total_step
            if stop:
                return


def _describe_step(total_step: int, *, saved_step: int) -> str:
    last_checkpoint = f"the last good checkpoint is step {saved_step}" if saved_step else "there is no checkpoint yet"
    return (
        f"(total_step {total_step}), the step is discarded, {last_checkpoint}; "
        "lower the learning rate or the loss weights, or check the data (presto dataset verify), and run again"
    )
