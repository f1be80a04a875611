"""Graceful shutdown of a run: on SIGTERM, Ctrl-C, a preemption notice, or a metric that stays unhealthy.

Each of them only records a reason. The training loop reads it after the current step, saves, and ends on every rank.
Commands that do not train end at once: SIGTERM raises an exception there, as Ctrl-C does.
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

SIGTERM_REASON = "it received SIGTERM"
CTRL_C_REASON = "Ctrl-C was pressed"
PREEMPTION_REASON = "its node is about to be preempted"
SUPERSEDED = "other workers have taken over its run"


class StoppedError(UserError):
    """A run ended early on request; its state is saved, and the same command resumes it.

    Attributes:
        exit_code: of the command: 128 plus the number of the signal that this process received, if that was the reason.
    """

    exit_code = 1


class TerminatedError(KeyboardInterrupt):
    """SIGTERM was received; like Ctrl-C, it ends the command from wherever it is."""


class SupersededWorkerError(UserError):
    """A worker still runs although other workers have replaced it; only they may write."""


@dataclass
class StopRequest:
    """The reason why a run should end early, or empty; the first reason counts."""

    reason: str = ""
    signal_number: int = 0

    @property
    def exit_code(self) -> int:
        """Exit code of a command that ends for this reason."""
        return 128 + self.signal_number if self.signal_number else 1

    def request(self, reason: str) -> None:
        self.reason = self.reason or reason

    def install_handlers(self) -> None:
        """Let SIGTERM and a first Ctrl-C request a stop; has an effect in the main thread only."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)
            signal.signal(signal.SIGINT, self._on_ctrl_c)

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Install the handlers for the block."""
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        self.install_handlers()
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _on_sigterm(self, number: int, _frame: FrameType | None) -> None:
        self._request_by_signal(SIGTERM_REASON, number)

    def _on_ctrl_c(self, number: int, _frame: FrameType | None) -> None:
        if self.reason:
            raise KeyboardInterrupt
        self._request_by_signal(CTRL_C_REASON, number)
        console.print("stopping after this step, with the state saved; press Ctrl-C again to stop at once without it")

    def _request_by_signal(self, reason: str, number: int) -> None:
        self.signal_number = self.signal_number if self.reason else number
        self.request(reason)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the command like Ctrl-C for the block; otherwise Ray handles it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def raise_terminated(_number: int, _frame: FrameType | None) -> None:
    """The handler of SIGTERM of a command that does not train."""
    raise TerminatedError


@contextmanager
def keep_signal_handlers() -> Iterator[None]:
    """Put this program's own handlers back after the block; `ray.init` replaces that of SIGTERM by one that exits."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if callable(handler):  # not the default, which would leave Ray's processes behind
                    signal.signal(number, handler)


@contextmanager
def block_ctrl_c() -> Iterator[None]:
    """Start processes in the block that Ctrl-C in a terminal does not reach; whoever starts them ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# of a Ray Train worker's process, whose signal handler and training run in different threads
WORKER_STOP = StopRequest()


def install_handlers_in_worker() -> StopRequest:
    """Install the SIGTERM handler of a Ray Train worker from its training thread; by default SIGTERM ends it."""
    import ray

    # only the main thread can set signal handlers, and the actor executes remote calls there
    actor: Any = ray.get_runtime_context().current_actor
    ray.get(actor.execute.remote(_install_sigterm_handler))
    return WORKER_STOP


def _install_sigterm_handler() -> None:
    signal.signal(signal.SIGTERM, WORKER_STOP._on_sigterm)


def attempt_id() -> str:
    """Return the id of this process's worker group, which is that of its placement group."""
    import ray

    actor: Any = ray.get_runtime_context().current_actor  # only its main thread knows its placement group
    return str(ray.get(actor.execute.remote(lambda: ray.get_runtime_context().get_placement_group_id())))


def is_preemption_pending() -> bool:
    """Return whether Ray has announced the preemption of a node of this worker's group."""
    from ray.train.v2._internal.execution.context import get_train_context

    # ray.train.get_preemption_info waits until all ranks call it; here ranks check independently
    return get_train_context().preemption_context.preemption_info is not None
