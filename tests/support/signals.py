"""Signal handling of a test run; a plugin of tests/conftest.py, active in each process of pytest-xdist.

SIGTERM ends the run in order: fixtures stop their servers, and remaining processes are killed. Commands that tests
start can be interrupted even if the run itself ignores Ctrl-C, as in the background of a script.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from types import FrameType

import psutil
import pytest

PATIENCE_S = 60  # for the fixtures of a worker to stop their servers


class SigtermHandler:
    """Turns the first SIGTERM into a KeyboardInterrupt.

    Attributes:
        sigterm_received: whether SIGTERM came.
        family: all descendants of this process when it came.
        owner: id of the process that installed the handler.
    """

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.sigterm_received = False
        self.family: list[psutil.Process] = []

    def install(self) -> None:
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self.owner:  # a forked child inherits the handler and must die normally
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self.sigterm_received:
            self.sigterm_received = True
            self.family = psutil.Process().children(recursive=True)
            signal.signal(signal.SIGINT, ignore)  # a Ctrl-C now would interrupt the fixtures' teardown
            raise KeyboardInterrupt

    def kill_what_is_left(self) -> None:
        for member in {*self.family, *psutil.Process().children(recursive=True)}:
            with suppress(psutil.Error):  # psutil detects a reused process id
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
    HANDLER.install()  # Ray replaces the handler in any test or fixture that starts it


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    HANDLER.install()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Wait for the workers of pytest-xdist, which itself waits only ten seconds."""
    if HANDLER.sigterm_received and session.config.pluginmanager.has_plugin("dsession"):
        workers, until = psutil.Process().children(), time.monotonic() + PATIENCE_S
        while workers and time.monotonic() < until:
            for worker in workers:  # repeatedly: Ray or a training can consume the first signal
                with suppress(psutil.Error):
                    worker.terminate()
            _, workers = psutil.wait_procs(workers, timeout=5)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    if HANDLER.sigterm_received:
        HANDLER.kill_what_is_left()
        if hasattr(config, "workerinput"):
            os._exit(1)  # otherwise a worker waits for another session
