"""Which commands the pages show, and what becomes of each: `python -m tests.e2e.page_commands` counts and lists them.

A fenced block of commands or Python says in a comment above it whether tests run it: `<!-- run -->` in CI,
`<!-- run: slow -->` in `make test-slow`, `<!-- run by: tests/… -->` by that test, or `<!-- not run: REASON -->`. A page
that says "Written by `make TARGET`" is a transcript, run by that. Commands within a line of text are mentions. Whatever
the class, `command_check.py` checks all of them.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHELLS = ("bash", "sh", "shell", "console")
PROGRAMS = ("presto", "make", "python", "pip", "mlflow", "kubectl", "docker", "curl", "ray", ".ci/run")
MENTION, UNMARKED = "mention", "unmarked"
CLASSES = ("run", "run: slow", "run by", "not run", MENTION, UNMARKED)
# fenced with backquotes or tildes, or indented by four spaces after a blank line
INDENTED = re.compile(r"(?<=\n\n) {4,}\$?[^\S\n]*(?P<text>[^\n]+)\n")
BLOCK = re.compile(
    r"^ *(?P<fence>```|~~~)(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^ *(?P=fence)", re.DOTALL | re.MULTILINE
)
MARK = re.compile(r"<!-- (?P<kind>run: slow|run by|not run|run)(?:: (?P<note>[^\n]+?))? -->\s*\Z")
WRITER = re.compile(r"^Written by `(make [a-z-]+)`", re.MULTILINE)
SPAN = re.compile(r"(?<![`\w])(`+)(?P<text>[^`]+)\1(?!`)")


@dataclass(frozen=True)
class PageCommand:
    """A command line of a page, as its words; `shell` is the whole line for bash."""

    page: str
    line: int
    kind: str
    note: str
    shell: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page that holds commands or Python, with the mark above it."""

    page: str
    line: int
    language: str
    kind: str
    note: str
    lines: tuple[str, ...]


def list_pages() -> list[Path]:
    """All pages that people read: those of the repository's root, the site, and the tests."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "tests").rglob("*.md"))]


def read_blocks(text: str, page: str) -> Iterator[Block]:
    """Yield the fenced blocks that hold commands or Python."""
    for found in BLOCK.finditer(text):
        language = found["language"]
        lines = tuple(_read_lines(language, found["text"]))
        if not lines:
            continue
        mark = MARK.search(text, 0, found.start())
        kind, note = (mark["kind"], mark["note"] or "") if mark else (UNMARKED, "")
        if language == "console" and (writer := WRITER.search(text)):
            kind, note = "run by", writer[1]
        yield Block(page, text.count("\n", 0, found.start()) + 1, language, kind, note, lines)


def _read_lines(language: str, text: str) -> list[str]:
    """Lines to run: commands, of a transcript only what is typed; or the lines of a program."""
    if language == "python":
        return text.splitlines()
    lines = list(_join_lines(text, is_transcript=language == "console"))
    if language in SHELLS:
        return lines
    return [line for line in lines if (words := _split_words(line)) and _is_command(words[0])]


def read_commands(text: str, page: str) -> Iterator[PageCommand]:
    """Yield every command of a page: those of blocks, then those within text."""
    for block in read_blocks(text, page):
        if block.language == "python":
            program = "\n".join(block.lines)
            yield PageCommand(page, block.line, block.kind, block.note, program, ("python", "-c", program))
            continue
        for line in block.lines:
            for words in _split_words(line):
                yield PageCommand(page, block.line, block.kind, block.note, line, tuple(words))
    prose = BLOCK.sub(lambda found: "\n" * found[0].count("\n"), text)
    for found in INDENTED.finditer(prose):
        for words in _split_words(found["text"]):
            if _is_command(words):
                line_number = prose.count("\n", 0, found.start()) + 1
                yield PageCommand(page, line_number, UNMARKED, "", found["text"], tuple(words))
    for found in SPAN.finditer(prose):
        line = " ".join(found["text"].split())
        for words in _split_words(line) if _is_command(line.split(" ")[:1]) else ():
            yield PageCommand(page, prose.count("\n", 0, found.start()) + 1, MENTION, "", line, tuple(words))


def read_all_commands() -> list[PageCommand]:
    return [
        command
        for path in list_pages()
        for command in read_commands(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
    ]


def _join_lines(text: str, *, is_transcript: bool) -> Iterator[str]:
    """Yield command lines: continued ones as one, of a transcript only what is typed, no comments."""
    whole = ""
    for line in text.splitlines():
        if is_transcript and not whole and not line.startswith("$ "):
            continue
        whole += line.strip().removeprefix("$ ") if not whole else f" {line.strip()}"
        if whole.endswith("\\") or not _is_closed(whole):
            whole = whole.removesuffix("\\").rstrip()
            continue
        if whole and not whole.startswith("#"):
            yield whole
        whole = ""


def _is_closed(line: str) -> bool:
    """Whether no quote is open at its end."""
    try:
        shlex.split(line, comments=True)
    except ValueError:
        return False
    return True


def _split_words(line: str) -> list[list[str]]:
    """Split a line at `&&`, `|` and the like into commands of words, without comments, assignments and `> FILE`."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.commenters = "#"
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # an apostrophe in text
        return []
    commands: list[list[str]] = [[]]
    for previous, word in zip(["", *words], words):
        if ">" in (previous, word):
            continue
        if word and not word.strip("|&;"):
            commands.append([])
        elif commands[-1] or not re.fullmatch(r"[A-Z_]+=.*", word):
            commands[-1].append(word)
    return [command for command in commands if command]


def _is_command(words: list[str]) -> bool:
    return bool(words) and words[0].removeprefix(".venv/bin/") in PROGRAMS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="every command, by class")
    wants_list = parser.parse_args().list
    commands = read_all_commands()
    counts = Counter(command.kind for command in commands)
    pages = len({command.page for command in commands})
    print(f"{len(commands)} commands on {pages} pages: {', '.join(f'{counts[kind]} {kind}' for kind in CLASSES)}")
    if wants_list:
        for command in sorted(commands, key=lambda c: (CLASSES.index(c.kind), c.page, c.line)):
            typed = " ".join(command.shell.split("\n")[:1])
            print(f"{command.kind:9} {command.page}:{command.line}: {typed}  {command.note}".rstrip())


if __name__ == "__main__":
    main()
