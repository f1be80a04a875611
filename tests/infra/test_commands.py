"""Every command has a dry run that changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from infra.cli.main import app


def iter_commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, below in command.commands.items():
        yield from iter_commands(below, (*path, name))


def test_every_command_has_a_dry_run():
    found = dict(iter_commands(typer.main.get_command(app)))
    assert ("registry", "list") in found
    assert ("train-teacher",) in found
    without = [path for path, command in found.items() if not any("--dry-run" in p.opts for p in command.params)]
    assert not without


@pytest.mark.parametrize(
    "args",
    [
        ("registry", "show", "presto-generator@champion", "tracking.uri=http://127.0.0.1:1"),
        ("jobs", "logs", "raysubmit_x", "--on", "http://127.0.0.1:1", "-f"),
        ("dataset", "verify", "s3://nowhere/x"),
        ("presets",),
    ],
)
def test_the_dry_run_of_a_command_that_only_reads_reads_nothing(args: tuple[str, ...]):
    """None of these locations exists, so reading would fail."""
    done = CliRunner().invoke(app, [*args, "--dry-run"], catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stdout.startswith("would do this, which changes no artifact, record or job: ")
    assert CliRunner().invoke(app, [*args, "--dry-rum"]).exit_code == 2
