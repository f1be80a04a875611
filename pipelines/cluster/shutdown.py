"""How a run is asked to end early and in order: SIGTERM, Ctrl-C, a preemption notice, a signal that stays unhealthy.

All of them only leave a reason. The loop sees it after the step it is in, saves, and ends on every rank.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from pipelines.console import console
from presto_core.errors import UserError

SIGTERM_REASON = "it was told to end (SIGTERM)"
CTRL_C_REASON = "Ctrl-C was pressed"
PREEMPTION_REASON = "its node is about to be taken away"
SUPERSEDED = "other workers have taken over its run"


class StoppedError(UserError):
    """A run ended early because it was asked to; its state is saved and the same command goes on."""


class SupersededWorkerError(UserError):
    """A worker goes on though its node was given up: those that took over write, and it must not."""


@dataclass
class StopRequest:
    """Why a run should end early; empty while it should not. The first reason counts."""

    reason: str = ""

    def request(self, reason: str) -> None:
        self.reason = self.reason or reason

    def install_handlers(self) -> None:
        """Let SIGTERM and a first Ctrl-C of this process ask for a stop; only its main thread hears of signals."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)
            signal.signal(signal.SIGINT, self._on_ctrl_c)

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """`listen` while the block runs."""
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        self.install_handlers()
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _on_sigterm(self, _number: int, _frame: FrameType | None) -> None:
        self.request(SIGTERM_REASON)

    def _on_ctrl_c(self, _number: int, _frame: FrameType | None) -> None:
        if self.reason:
            raise KeyboardInterrupt
        self.request(CTRL_C_REASON)
        console.print("stopping after this step; the state is saved first (Ctrl-C again: at once, without)")


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """While the block runs, SIGTERM ends the command as Ctrl-C does; Ray takes it for itself otherwise."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


WORKER_STOP = (
    StopRequest()
)  # of a Ray Train worker's process; its signal handler and its training are in different threads


def install_handlers_in_worker() -> StopRequest:
    """From a Ray Train worker's training thread: let its process hear SIGTERM, which Ray would end it for."""
    import ray

    # signal handlers can only be set by the main thread, which is where the actor does what is asked of it meanwhile
    actor: Any = ray.get_runtime_context().current_actor
    ray.get(actor.execute.remote(_install_sigterm_handler))
    return WORKER_STOP


def _install_sigterm_handler() -> None:
    signal.signal(signal.SIGTERM, WORKER_STOP._on_sigterm)


def attempt_id() -> str:
    """What tells the worker group of this process from those before and after it: its placement group."""
    import ray

    actor: Any = ray.get_runtime_context().current_actor  # only its main thread knows where it was placed
    return str(ray.get(actor.execute.remote(lambda: ray.get_runtime_context().get_placement_group_id())))


def is_preemption_pending() -> bool:
    """Whether Ray has told this worker that a node of its group is about to go."""
    from ray.train.v2._internal.execution.context import get_train_context

    # ray.train.get_preemption_info asks rank 0, and waits until all ranks ask: here each asks when it likes
    return get_train_context().preemption_context.preemption_info is not None
