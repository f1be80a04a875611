"""Console output: progress bars on a terminal, periodic lines in a log, and tables."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as EtaColumn
from rich.table import Table

console = Console(stderr=True, highlight=False, soft_wrap=True)
LINE_EVERY_S = 10.0


@dataclass
class Bar:
    """One stage's progress; call `update` with the number of finished items."""

    label: str
    total: int
    bars: Progress | None = None
    task: TaskID | None = None
    start_time: float = field(default_factory=time.monotonic)
    first: int | None = None
    last_print_time: float = field(default_factory=time.monotonic)

    done: int = 0

    def update(self, done: int, note: str = "") -> None:
        self.done = done
        if self.first is None:
            self.first = done  # a resumed run starts here; the rate must not count the work of earlier runs
        if self.bars is not None and self.task is not None:
            self.bars.update(self.task, completed=done, note=note)
        elif time.monotonic() - self.last_print_time >= LINE_EVERY_S or done == self.total:
            self.last_print_time = time.monotonic()
            console.print(f"{self.label}: {done}/{self.total}{self._format_time_left(done)}  {note}")

    def _format_time_left(self, done: int) -> str:
        progress = done - (self.first or 0)
        if not progress or done >= self.total:
            return ""
        seconds = (time.monotonic() - self.start_time) / progress * (self.total - done)
        return f", {int(seconds // 60)}:{int(seconds % 60):02d} left"


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[Bar]:
    """Show a progress bar (terminal) or lines (log) while the block runs."""
    if not console.is_terminal:
        yield Bar(label, total)
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        EtaColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=False) as bars:
        yield Bar(label, total, bars, bars.add_task(label, total=total, note=""))


def format_metrics(metrics: dict[str, float], names: tuple[str, ...]) -> str:
    """Format the named metrics in one short line."""
    return "  ".join(f"{name} {metrics[name]:.3g}" for name in names if name in metrics)


def print_table(title: str, columns: tuple[str, ...] | None, rows: list[list[str]]) -> None:
    """Print a command's result to standard output."""
    table = Table(*(columns or ()), title=title, show_header=columns is not None)
    for row in rows:
        table.add_row(*map(escape, row))
    Console(width=118).print(table)
