"""What reaches a terminal: consoles on which names, captions and messages are text, never markup and never control."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.status import Status
from rich.text import Text

LOG_WIDTH = 80
UNLIMITED_WIDTH = 100_000
# Control characters, lone surrogates, line and paragraph separators, and marks that turn the direction of text, with
# which one name can look like another.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_COLOR = re.compile(r"\x1b\[[0-9;:]*m")


def make_printable(text: str, *, keep: str = "") -> str:
    """Escape what a name or a caption must not send to a terminal: control characters, lone surrogates, directions.

    Args:
        keep: control characters to leave, such as a line break.
    """
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


class PlainConsole(Console):
    """A console that prints texts as they are: no markup, no emoji codes, and nothing that a terminal would obey.

    Styles come from `style=` and from rich's own objects.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a text of a string, which may be a cell of a table: escaped before its width is measured."""
        return super().render_str(make_printable(text, keep="\n\t"), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render anything; what rich's objects hold is escaped too, but for rich's own control codes."""
        for segment in super().render(renderable, options):
            if segment.control or not _UNPRINTABLE.search(segment.text):
                yield segment
            else:
                yield Segment(make_printable(segment.text, keep="\n\t"), segment.style)

    def status(self, status: RenderableType, **options: Any) -> Status:
        """Show what is being done; a string is text here too."""
        return super().status(self.render_str(status) if isinstance(status, str) else status, **options)


class ResultConsole(PlainConsole):
    """Standard output: as wide as the terminal; a file or pipe is as wide as what is printed, from 80 columns on."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print renderables; in a file or pipe no table is cut or wrapped."""
        if not self.is_terminal:
            unlimited = self.options.update(width=UNLIMITED_WIDTH)
            needed = [Measurement.get(self, unlimited, one).maximum for one in objects]
            self.width = max([LOG_WIDTH, *needed])
        super().print(*objects, **options)


console = PlainConsole(stderr=True, highlight=False, soft_wrap=True)


def make_console(file: IO[str] | None = None) -> Console:
    """A console for results, on standard output or `file`."""
    return ResultConsole(file=file)


def print_text(text: str, *, end: str = "\n") -> None:
    """Print lines of a command's result to standard output, unwrapped."""
    sys.stdout.write(make_printable(text, keep="\n\t") + end)
    sys.stdout.flush()


def print_log(text: str) -> None:
    """Print a part of a foreign log to standard output, without its colors; a bar that redraws itself becomes lines."""
    print_text(_COLOR.sub("", text).replace("\r\n", "\n").replace("\r", "\n"), end="")
