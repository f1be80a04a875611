"""Whether a command of a page could run as written: its options, settings, targets, modules and paths exist.

A `presto` command runs in an empty folder as far as its dry run goes, and one that only reads runs as it is. That it
finds nothing there to work on (`UserError`) is no mistake of the page; a wrong word, option, setting or value is.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import io
import re
from functools import cache
from typing import Any

import typer

from infra.cli.main import app
from presto_core.config.loader import ConfigError
from presto_core.errors import UserError
from tests.e2e.page_commands import MENTION, ROOT, PageCommand

USAGE_ERROR: Any = typer._click.exceptions.UsageError
# what pages write for something that the reader knows
PLACEHOLDERS = {
    "STAGE": "distill-steps",
    "PRESET": "demo",
    "KEY": "steps.p_dmd",
    "JOB": "presto-job",
    "TARGET": "demo",
    "NAME": "ingest",
    "N": "8",
}
PLACEHOLDERS |= {"<command>": "distill-steps", "<preset>": "demo", "SECONDS:PROMPT": "0:piano", "FILE": "prompts.csv"}
PLACEHOLDERS |= {"submit.image=IMAGE@DIGEST": f"submit.image=registry/presto@sha256:{'0' * 64}"}
VARIABLES = {"ROOT": "storage.root=s3://presto/mine", "HERE": "storage.root=s3://presto/demo", "PWD": "/home/me"}
ELSEWHERE = ("jobs", "serve")  # reading would wait for a head, or for requests
FOLDERS = ("docs", "examples", "infra", "pipelines", "presto_core", "tests", "tune_spaces")


def find_problem(command: PageCommand) -> str:
    """Return what is wrong with a command, or ""; to be called in a folder that has the files that pages name."""
    if command.note.startswith("make "):  # a transcript: what it was written by refuses what the page does not expect
        return ""
    return find_problem_of_words(command.words, is_mention=command.kind == MENTION)


@cache
def find_problem_of_words(typed: tuple[str, ...], *, is_mention: bool) -> str:
    """Return what is wrong with a command's words, or ""."""
    words = [_substitute(word) for word in typed]
    program = words[0].removeprefix(".venv/bin/")
    if program == "presto":
        return find_presto_problem([w for w in words[1:] if w not in ("…", ">")], is_mention=is_mention)
    if program == "make":
        return "".join(
            f"no target {w} in the Makefile; " for w in words[1:] if "=" not in w and w not in list_targets()
        )
    if program == "python":
        return find_python_problem(words[1:])
    return find_missing_paths(words)


def find_presto_problem(args: list[str], *, is_mention: bool) -> str:
    """Run a command as far as nothing is needed but its words.

    Args:
        is_mention: arguments may be missing, since the text speaks of the command and does not show how to type it.
    """
    command, rest = _find_command(args)
    if is_mention and hasattr(command, "commands") and not rest:
        return ""  # the program, or a group of commands
    if hasattr(command, "commands"):
        return _run(args)
    if "--help" in args or "--version" in args:
        return _run(args)
    # typer wraps every command once; add_dry_run wraps those that only read once more
    reads = hasattr(command.callback.__wrapped__, "__wrapped__") and args[0] not in ELSEWHERE
    problem = _run(args if reads or "--dry-run" in args else [*args, "--dry-run"])
    return "" if is_mention and re.search("Missing |give one|: set seconds", problem) else problem


def _find_command(args: list[str]) -> tuple[Any, list[str]]:
    """Return the command or group that the first words name, and the words after them."""
    command = get_command()
    rest = [*args]
    while rest and rest[0] in getattr(command, "commands", ()):
        command = command.commands[rest.pop(0)]
    if hasattr(command, "default") and (rest or command.runs_alone):
        command = command.commands[command.default]
    return command, rest


def _run(args: list[str]) -> str:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as printed:
        try:
            get_command().main(args, standalone_mode=False)
        except USAGE_ERROR as error:
            return str(error.format_message())
        except ConfigError as error:
            return str(error)
        except UserError:
            return ""
        except SystemExit as stop:
            return printed.getvalue() if stop.code else ""
    return ""


def find_python_problem(words: list[str]) -> str:
    """Return which module or file `python` would not find."""
    if words[:1] == ["-c"]:
        return find_import_problem(words[1])
    if words[:1] == ["-m"] and importlib.util.find_spec(words[1]) is None:
        return f"no module {words[1]}"
    return find_missing_paths(words)


def find_import_problem(program: str) -> str:
    """Return which names a program imports from modules that do not have them."""
    imported = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.ImportFrom)]
    missing = [
        f"{node.module}.{name.name}"
        for node in imported
        for name in node.names
        if not hasattr(importlib.import_module(str(node.module)), name.name)
    ]
    return f"no {', '.join(missing)}" if missing else ""


def find_missing_paths(words: list[str]) -> str:
    """Return which words are paths below a folder of the repository, and do not exist."""
    paths = [word.partition("::")[0] for word in words if word.split("/")[0] in FOLDERS and "/" in word]
    return "".join(f"no file {path}; " for path in paths if "*" not in path and not (ROOT / path).exists())


@cache
def get_command() -> Any:
    return typer.main.get_command(app)


@cache
def list_targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def _substitute(word: str) -> str:
    for name, value in VARIABLES.items():
        word = re.sub(rf"\${name}\b", value, word)
    return PLACEHOLDERS.get(word, word)
