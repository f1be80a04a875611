"""How a test run hears signals; a plugin of tests/conftest.py, at work in each process of pytest-xdist.

SIGTERM ends the run in order: fixtures end their servers, and what is left of them is killed. And commands that tests
start can be interrupted, also where the run itself ignores Ctrl-C, as in the background of a script.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from types import FrameType

import psutil
import pytest

PATIENCE_S = 60  # for the fixtures of a worker to end their servers


class SigtermHandler:
    """Turns SIGTERM into what Ctrl-C does, once.

    Attributes:
        sigterm_received: whether SIGTERM came.
        family: all processes that this one had started, and they in turn, when it came.
    """

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.sigterm_received = False
        self.family: list[psutil.Process] = []

    def install(self) -> None:
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self.owner:  # a forked child inherits the handler and should die as any other
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self.sigterm_received:
            self.sigterm_received = True
            self.family = psutil.Process().children(recursive=True)
            signal.signal(signal.SIGINT, ignore)  # or it would cut the fixtures' ends short
            raise KeyboardInterrupt

    def kill_what_is_left(self) -> None:
        for member in {*self.family, *psutil.Process().children(recursive=True)}:
            with suppress(psutil.Error):  # which knows a process of the same id from the one that was meant
                member.kill()


HANDLER = SigtermHandler()


def ignore(_number: int, _frame: FrameType | None) -> None:
    """A handler, unlike SIG_IGN, is not inherited by the commands that a process starts."""


def pytest_configure() -> None:
    HANDLER.install()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, ignore)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    HANDLER.install()  # Ray takes the signal for itself in whichever test or fixture starts it


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    HANDLER.install()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Wait for the workers of pytest-xdist, which would give them ten seconds."""
    if HANDLER.sigterm_received and session.config.pluginmanager.has_plugin("dsession"):
        workers, until = psutil.Process().children(), time.monotonic() + PATIENCE_S
        while workers and time.monotonic() < until:
            for worker in workers:  # again and again: Ray or a training may have taken the first one for itself
                with suppress(psutil.Error):
                    worker.terminate()
            _, workers = psutil.wait_procs(workers, timeout=5)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    if HANDLER.sigterm_received:
        HANDLER.kill_what_is_left()
        if hasattr(config, "workerinput"):
            os._exit(1)  # a worker waits for another session otherwise
