"""Console output: progress on a terminal or as lines in a log, and tables as wide as the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from pipelines.terminal import LOG_WIDTH as LOG_WIDTH
from pipelines.terminal import console as console
from pipelines.terminal import make_console as make_console
from pipelines.terminal import make_printable as make_printable
from pipelines.terminal import print_text as print_text

LINE_EVERY_S = 10.0
FIRST_LINE_S = 1.0  # of waiting, in a log: short work prints nothing but its end
BAR_WIDTH = 24


def print_warning(message: str) -> None:
    """Print what was skipped, cut or ignored."""
    console.print(message, style="yellow")


@dataclass
class Bar:
    """One stage's progress; call `update` with the number of finished items.

    The time left counts from the first item that finishes, so that neither the start of Ray nor items of an earlier
    run are in it.

    Attributes:
        done: finished items, those of an earlier run included.
        waits_for: what is shown until the first item finishes.
        clock: seconds.
    """

    label: str
    total: int
    done: int = 0
    waits_for: str = "starting"
    clock: Callable[[], float] = time.monotonic
    live: bool = False
    note: str = ""
    has_begun: bool = field(default=False, init=False)
    has_finished_item: bool = field(default=False, init=False)
    anchor: tuple[float, int] | None = field(default=None, init=False)
    expected_end: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.start_time = self.last_line_time = self.clock()
        self.spinner = Spinner("dots")

    def begin(self, done: int) -> None:
        """Work begins or resumes now, with `done` items finished before."""
        self.done, self.has_begun, self.has_finished_item = done, True, False
        self.anchor, self.expected_end = (self.clock(), done), None

    def update(self, done: int, note: str = "") -> None:
        """Record that `done` items are finished; `note` tells about the last one, and is shortened to fit."""
        now = self.clock()
        if done > self.done:
            self._estimate_end(now, done)
        self.done, self.note = done, note
        if not self.live and (now - self.last_line_time >= LINE_EVERY_S or done == self.total):
            self._print_line(now)

    def print_waiting_line(self) -> None:
        """In a log: print what is waited for, until the first item finishes."""
        if self.is_waiting:
            self._print_line(self.clock())

    @property
    def is_waiting(self) -> bool:
        """Whether nothing has moved yet."""
        return not (self.has_begun or self.has_finished_item or self.done >= self.total)

    def format_time_left(self) -> str:
        """Time to the end at the pace of the items since the first; empty if it is unknown or nothing is left."""
        if self.expected_end is None or self.done >= self.total:
            return ""
        return format_duration(max(self.expected_end - self.clock(), 0.0))

    def format_line(self, width: int = LOG_WIDTH) -> str:
        """The progress as one line: label, count and time left whole, the note shortened to `width` columns."""
        if self.is_waiting:
            line = f"{self.label}: {self._format_waiting()}"
        else:
            left = self.format_time_left()
            line = f"{self.label}: {self.done}/{self.total}" + (f", {left} left" if left else "")
        note = shorten(make_printable(self.note), width - cell_len(line) - 2)
        return f"{line}  {note}" if note else line

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """On a terminal: a bar before the count where there is room for it, and all in one line."""
        yield self._render_waiting(options.max_width) if self.is_waiting else self._render_bar(options.max_width)

    def _estimate_end(self, now: float, done: int) -> None:
        if self.anchor is not None and done > self.anchor[1]:
            start, first = self.anchor
            self.expected_end = now + (now - start) / (done - first) * (self.total - done)
        if not self.has_finished_item:  # it was the slowest: from here on, only the items after it count
            self.has_finished_item, self.anchor = True, (now, done)

    def _print_line(self, now: float) -> None:
        self.last_line_time = now
        console.print(self.format_line())

    def _format_waiting(self) -> str:
        known = f", {self.done}/{self.total} done before" if self.done else ""
        return f"{self.waits_for} … {format_duration(self.clock() - self.start_time)}{known}"

    def _render_waiting(self, width: int) -> RenderableType:
        self.spinner.update(text=Text(shorten(self.format_line(width - 2), width - 2)))
        return self.spinner

    def _render_bar(self, width: int) -> RenderableType:
        left = self.format_time_left()
        elapsed = format_duration(self.clock() - self.start_time)
        count = f"{self.done}/{self.total}  {elapsed}" + (f", {left} left" if left else "")
        label = shorten(self.label, max(width - cell_len(count) - 1, 1))
        room = width - cell_len(label) - cell_len(count) - 1
        bar_width = min(BAR_WIDTH, width // 4)
        bar_width = bar_width if bar_width < room else 0
        note = shorten(make_printable(self.note), room - (bar_width + 1 if bar_width else 0) - 1)
        bar = ProgressBar(self.total or 1, self.done if self.total else 1, width=bar_width) if bar_width else None
        return _join_cells([Text(label, "bold"), bar, Text(count), Text(note, "dim") if note else None])


def _join_cells(cells: list[RenderableType | None]) -> Table:
    """Cells beside each other in one line, a space apart; None is left out."""
    shown = [cell for cell in cells if cell is not None]
    grid = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
    for _ in shown:
        grid.add_column(no_wrap=True)
    grid.add_row(*shown)
    return grid


@contextmanager
def progress_bar(label: str, total: int, *, done: int = 0, waits_for: str = "starting") -> Iterator[Bar]:
    """Show a progress bar (terminal) or lines (log) while the block runs.

    Args:
        done: items that an earlier run finished.
        waits_for: what happens until the first item finishes, e.g. `starting Ray`.
    """
    bar = Bar(label, total, done=done, waits_for=waits_for, live=console.is_terminal)
    if bar.live:
        with Live(bar, console=console, refresh_per_second=8):
            yield bar
    else:
        with _print_waiting_lines(bar):
            yield bar


@contextmanager
def _print_waiting_lines(bar: Bar) -> Iterator[None]:
    """Print in a log what a bar waits for, from a thread, because nothing calls the bar meanwhile."""
    stopped = Event()

    def print_lines() -> None:
        pause_s = FIRST_LINE_S
        while not stopped.wait(pause_s) and bar.is_waiting:
            bar.print_waiting_line()
            pause_s = LINE_EVERY_S

    thread = Thread(target=print_lines, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def format_duration(seconds: float) -> str:
    """Format as m:ss, from an hour on as h:mm:ss."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def shorten(text: str, width: int) -> str:
    """Cut a line to `width` columns with an ellipsis, between its parts (two spaces apart) if it has several."""
    if cell_len(text) <= width:
        return text
    if width < 1:
        return ""
    cut = set_cell_size(text, width - 1)
    return (cut.rpartition("  ")[0] or cut).rstrip() + "…"


def format_metrics(metrics: dict[str, float], names: tuple[str, ...]) -> str:
    """Format the named metrics in one short line."""
    return "  ".join(f"{name} {metrics[name]:.3g}" for name in names if name in metrics)


def make_table(title: str, columns: tuple[str, ...] | None, rows: list[list[str]]) -> Table:
    """A table whose long cells wrap, within words too, so that nothing is lost in a narrow terminal."""
    table = Table(title=make_printable(title), show_header=columns is not None)
    for number in range(len(columns) if columns else max(map(len, rows), default=0)):
        table.add_column(columns[number] if columns else "", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def print_table(title: str, columns: tuple[str, ...] | None, rows: list[list[str]]) -> None:
    """Print a command's result to standard output."""
    make_console().print(make_table(title, columns, rows))
