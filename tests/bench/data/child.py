"""Processes of the benchmark's own: one measurement does not see the memory, threads or caches of another."""

from __future__ import annotations

import json
import subprocess
import sys
from threading import Timer
from types import TracebackType
from typing import Any

import psutil

ANSWER = "answer "  # other lines are what libraries print
LIMIT_S = 180.0  # for one answer


class Child:
    """A module of this package run as a process; told and answering in lines of JSON."""

    def __init__(self, module: str, *arguments: str) -> None:
        self.name = f"{module} {' '.join(arguments)}"
        command = [sys.executable, "-m", f"tests.bench.data.{module}", *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.printed: list[str] = []

    def ask(self, question: Any) -> Any:
        """Send a question and wait for its answer."""
        self.send(question)
        return self.receive()

    def send(self, question: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()

    def receive(self) -> Any:
        assert self.process.stdout
        timer = Timer(LIMIT_S, self.process.terminate)
        timer.start()
        try:
            for line in self.process.stdout:
                if line.startswith(ANSWER):
                    return json.loads(line.removeprefix(ANSWER))
                self.printed.append(line)
        finally:
            timer.cancel()
        output = "".join(self.printed[-20:]).strip() or f"nothing, for up to {LIMIT_S:g} s"
        raise RuntimeError(f"{self.name} ended without an answer; it said {output}")

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self.process.stdin
        below = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        for process in psutil.wait_procs(below, timeout=10)[1]:
            process.kill()


def reply(answer: Any) -> None:
    """Answer from inside the child."""
    print(ANSWER + json.dumps(answer), flush=True)
