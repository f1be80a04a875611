"""The page of all commands, from the command line itself: what `--help` says, in one place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer.main

from infra.cli.main import app
from infra.docs_site.configuration import escape_line

_TAG = re.compile(r"\[/?[a-z ]+\]")
INTRODUCTION = """\
# Commands

Generated from the command line itself: what `presto COMMAND --help` says.
"""


def describe_commands() -> str:
    """Return the page as Markdown: a part per command that is not hidden."""
    return "\n".join([INTRODUCTION, *(_format(*found) for found in _walk(typer.main.get_command(app), "presto"))])


def _walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield each command with its full name; a group is one that has commands."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for child, found in sorted(command.commands.items()):
        if not found.hidden:
            yield from _walk(found, f"{name} {child}")


def _format(name: str, command: Any) -> str:
    context = command.context_class(command, info_name=name)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    lines = [f"## {name}", "", "```", usage, "```", "", _strip_markup(command.help or ""), ""]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden and p.name != "help"]
    if options:
        lines += [f"`{', '.join(one.opts)}`\n:   {escape_line(_strip_markup(one.help or ''))}\n" for one in options]
    return "\n".join(lines)


def _strip_markup(text: str) -> str:
    """Text without rich's tags such as [bold]; placeholders like [KEY=VALUE] stay."""
    return _TAG.sub("", text).replace("\b", "").replace("<", "&lt;")
