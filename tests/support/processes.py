"""Commands as real processes: started, watched, killed, and ended with all their children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import psutil

PRESTO = str(Path(sys.executable).parent / "presto")
PATIENCE_S = 900  # for what takes about twenty seconds on an idle machine


class Attempt:
    """One attempt of a command: a process in its own session, and all the processes it starts."""

    def __init__(
        self,
        command: list[str],
        cwd: Path,
        environment: Mapping[str, str] = MappingProxyType({}),
        *,
        keep_stdin: bool = False,
    ) -> None:
        mine = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
        self.log = cwd / f"attempt-{time.time_ns()}.log"
        with self.log.open("wb") as stderr, self.log.with_suffix(".out").open("wb") as stdout:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env=mine | {"HOME": str(cwd), "OMP_NUM_THREADS": "1"} | dict(environment),
                stdin=subprocess.PIPE if keep_stdin else None,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        self.family: set[psutil.Process] = {psutil.Process(self.process.pid)}

    @property
    def stderr(self) -> str:
        return self.log.read_text()

    @property
    def stdout(self) -> str:
        return self.log.with_suffix(".out").read_text()

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def look(self) -> None:
        """Record every descendant of this command, so that none is left when it is dead."""
        for member in list(self.family):
            try:
                self.family |= set(member.children(recursive=True))
            except psutil.Error:
                continue

    def workers(self, *titles: str) -> list[tuple[psutil.Process, str]]:
        """Return the Ray workers whose title contains one of `titles`, with their titles."""
        self.look()
        found = [(member, title_of(member)) for member in self.family]
        return [(worker, title) for worker, title in found if any(t in title for t in titles)]

    def kill(self) -> None:
        """Kill the driver with SIGKILL; its children keep running until `end`."""
        self.look()
        assert self.is_running
        self.process.kill()
        assert self.process.wait(60) == -signal.SIGKILL

    def end(self, patience_s: float = 30.0) -> None:
        """Make sure that no process of this attempt is left; all but Ray's agents must end by themselves."""
        self.look()
        wait_for(
            lambda: not any(is_alive(m) and "Agent" not in title_of(m) for m in self.family), patience_s, step_s=0.1
        )
        for member in filter(is_alive, self.family):
            member.kill()
        assert wait_for(lambda: not any(map(is_alive, self.family)), 60)

    def exit_code(self) -> int:
        """Wait for the end and return the exit code; a failure must print exactly one message of presto."""
        code = self.process.wait(PATIENCE_S)
        self.end()
        if code:
            assert code in (1, 130, 143), self.stderr
            assert [s for s in self.stderr.splitlines() if s.startswith("presto: ")] == self.stderr.splitlines()[-1:]
            assert "Traceback" not in self.stderr
            assert "bug" not in self.stderr
        return code


def is_alive(member: psutil.Process) -> bool:
    try:
        return member.is_running() and member.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def title_of(member: psutil.Process) -> str:
    try:
        return " ".join(member.cmdline()).strip() if is_alive(member) else ""
    except psutil.Error:
        return ""


def wait_for(condition: Callable[[], object], seconds: float, *, step_s: float = 0.02) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(step_s)
    return True
