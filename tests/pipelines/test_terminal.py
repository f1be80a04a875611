"""Names, captions and messages reach a terminal as text: no markup, no emoji codes, no control characters."""

from __future__ import annotations

import ast
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from pipelines import terminal
from pipelines.console import Bar, make_table, print_text
from pipelines.terminal import PlainConsole, ResultConsole, make_printable, print_log

ROOT = Path(__file__).parents[2]
HOSTILE = {
    "markup": "a[/red]x.flac",
    "markup that hides": "a[red]b[link=http://x]c.flac",
    "emoji code": "kick:smile:.wav",
    "color": "a\x1b[31mx.flac",
    "title of the window": "\x1b]0;owned\x07",
    "one-character CSI": "a\x9b2Jb",
    "bell": "a\x07b",
    "backspace": "safe\x08\x08\x08\x08evil",
    "carriage return": "evil\rsafe",
    "direction": "a\u202egpj.exe",
    "isolate": "a\u2066b\u2069",
    "mark": "a\u200fb\u061c",
    "line separator": "a\u2028b",
    "not UTF-8": "a\udcffb",
    "null": "a\x00b",
    "delete": "a\x7fb",
}
RAW = frozenset("\x1b\x07\x08\r\x00\x7f\x9b\u202e\u2066\u2069\u2028\u200f\u061c\udcff")


POSITIONS: dict[str, Callable[[str], Any]] = {
    "line": lambda text: text,
    "text": Text,
    "cell": lambda text: make_table("t", ("a", "b"), [[text, "x"]]),
    "title": lambda text: make_table(text, None, [["x"]]),
    "column": lambda text: make_table("t", (text,), [["x"]]),
    "caption": lambda text: Table("a", caption=text),
    "tree": lambda text: Tree(text),
    "branch": lambda text: Padding(_add_branch(text), 1),
    "bar": lambda text: _make_bar(text),
}
WHOLE = ("line", "cell", "column", "tree", "branch", "bar")  # rich drops some characters of a Text, and wraps titles


def _add_branch(text: str) -> Tree:
    tree = Tree("root")
    tree.add(text)
    return tree


def _make_bar(text: str) -> Bar:
    bar = Bar("ingest", total=2)
    bar.begin(0)
    bar.update(1, text)
    return bar


def show(console_type: type[Console], renderable: Any, *, width: int = 300) -> str:
    stream = io.StringIO()
    console_type(file=stream, width=width, color_system=None, force_terminal=True).print(renderable)
    return stream.getvalue()


@pytest.mark.parametrize("console_type", [PlainConsole, ResultConsole])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_in_a_name_is_obeyed_or_lost(name: str, position: str, console_type: type[Console]):
    text = HOSTILE[name]
    shown = show(console_type, POSITIONS[position](text))
    assert not RAW & set(shown)
    assert position not in WHOLE or make_printable(text) in shown


@given(st.text())
def test_no_text_is_an_error_or_sends_a_control_character(text: str):
    for position in ("line", "cell", "tree"):
        shown = show(PlainConsole, POSITIONS[position](text))
        assert make_printable(shown, keep="\n") == shown


def test_status_shows_a_name_as_text(monkeypatch: pytest.MonkeyPatch):
    stream = io.StringIO()
    console = PlainConsole(file=stream, width=80, color_system=None, force_terminal=True)
    with console.status("doctor: a[/red]\x07"):
        pass
    assert "a[/red]\\x07" in stream.getvalue()


def test_printed_lines_and_logs_of_jobs_are_escaped_too(capsys: pytest.CaptureFixture[str]):
    print_text("page: a\x1b[31m\udcff.html\n\tmore")
    print_log("\x1b[36m(pid=1)\x1b[0m 10%\r20%\r\n\x1b]0;owned\x07")
    assert capsys.readouterr().out == ("page: a\\x1b[31m\\udcff.html\n\tmore\n(pid=1) 10%\n20%\n\\x1b]0;owned\\x07")


def list_terminal_writes(source: str) -> list[str]:
    """What would print past the consoles: print, typer.echo, sys.stdout.write, a console of rich's own, markup."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ("print", "Console", "rich.print", "typer.echo", "typer.secho", "click.echo"):
                found.append(name)
            if name in ("sys.stdout.write", "sys.stderr.write", "Text.from_markup", "Text.from_ansi", "print_exc"):
                found.append(name)
            found += [name for key in node.keywords if key.arg == "markup" and ast.unparse(key.value) != "False"]
    return found


def test_the_rule_finds_what_it_forbids():
    assert list_terminal_writes("print(f'{a}')\nConsole().print(x)\ntyper.echo(1)\nconsole.print(a, markup=True)") == [
        "print", "typer.echo", "console.print", "Console"
    ]  # fmt: skip
    assert not list_terminal_writes("console.print(f'[red]{a}')\nprint_text(a)")


def test_everything_is_printed_through_the_consoles():
    sources = [path for room in ("infra", "pipelines", "presto_core") for path in (ROOT / room).rglob("*.py")]
    assert len(sources) > 300
    own = Path(terminal.__file__)
    writes = {path: list_terminal_writes(path.read_text()) for path in sources if path != own}
    assert {str(path.relative_to(ROOT)): found for path, found in writes.items() if found} == {}
