"""What the waiting command sees of a run elsewhere: rows of metrics, a progress line, warnings, the first error."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipelines.progress import Bar, console, summary
from pipelines.tracking import TrackedRun
from presto_core.metrics.health import Expected, breaches

BOARD_POLL_S = 0.5
ROWS_BEFORE_WARNING = 5


@dataclass
class Board:
    """Messages from rank 0 to the command that waits; an actor where workers run elsewhere."""

    rows: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    error: str = ""

    def push(self, step: int, metrics: dict[str, float]) -> None:
        self.rows.append((step, metrics))

    def fail(self, error: str) -> None:
        self.error = self.error or error

    def drain(self) -> tuple[list[tuple[int, dict[str, float]]], str]:
        rows, self.rows = self.rows, []
        return rows, self.error


class Watcher:
    """Shows and records what rank 0 reports, and warns once of each unhealthy signal.

    Args:
        watch: metrics that the progress line shows.
        expected: the ranges signals should stay in.
    """

    def __init__(self, run: TrackedRun, bar: Bar, *, watch: tuple[str, ...], expected: dict[str, Expected]) -> None:
        self.run, self.bar, self.watch, self.expected = run, bar, watch, expected
        self.error = ""
        self.rows_outside: dict[str, int] = {}

    def receive(self, step: int, metrics: dict[str, float]) -> None:
        """One report; the first of an attempt has no metrics and says where it starts."""
        if not metrics and step:
            console.print(f"{self.bar.label}: resumed at step {step} of {self.bar.total}")
        self.bar.update(step, summary(metrics, self.watch))
        if metrics:
            self.run.log(step, metrics)
        self._warn(step, metrics)

    def _warn(self, step: int, metrics: dict[str, float]) -> None:
        """Say once of each signal that it has been outside its range for several rows on end."""
        outside = breaches(metrics, self.expected)
        self.rows_outside = {name: self.rows_outside.get(name, 0) + 1 for name in outside}
        for name, sentence in outside.items():
            if self.rows_outside[name] == ROWS_BEFORE_WARNING:
                console.print(f"[yellow]{self.bar.label}, step {step}: {sentence}")

    def poll(self, board: Any) -> None:
        """Fetch what has been reported to a `Board` actor since the last look."""
        import ray

        rows, self.error = ray.get(board.drain.remote())
        for step, metrics in rows:
            self.receive(step, metrics)

    @contextmanager
    def following(self, board: Any) -> Iterator[None]:
        """Poll the board while the block runs, and once more when it ends well."""
        done = threading.Event()

        def follow() -> None:
            while not done.wait(BOARD_POLL_S):
                self.poll(board)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        self.poll(board)
