"""`presto teacher import`: which of its arguments is the teacher, and which are settings."""

from __future__ import annotations

import pytest
import typer

from infra.cli.main import app
from presto_core.config.loader import ConfigError

COMMAND = typer.main.get_command(app)


def run(*args: str) -> None:
    COMMAND.main(["teacher", "import", *args], standalone_mode=False)


def test_the_argument_is_the_source_and_options_are_settings(capsys: pytest.CaptureFixture[str]):
    run("stabilityai/stable-audio-open-1.0", "--revision", "v1", "name=mine", "--dry-run")
    printed = capsys.readouterr().out
    for line in ("source: stabilityai/stable-audio-open-1.0", "revision: v1", "name: mine"):
        assert line in printed


def test_two_teachers_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"a/b and c/d"):
        run("a/b", "c/d", "--dry-run")
