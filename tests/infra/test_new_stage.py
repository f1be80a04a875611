"""A new stage is one module and one row: it gets its command, settings, dry run, run id, record and registration."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from infra.cli.stages import add_stage_commands
from infra.jobs.command import StageCommand
from pipelines.registry.resolve import resolve
from pipelines.stages.table import STAGES, Stage
from pipelines.tracking.client import open_tracker
from presto_core.config.loader import ConfigError
from presto_core.config.sections import TrackingConfig

MODULE, NAME = "tests.support.made_up_stage", "made-up"


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """The row; afterwards, its configuration is of no stage any more."""
    config = import_module(MODULE).MadeUpStage
    row = Stage(config, MODULE, (NAME,), "Write words into an artifact.", writes_run=True)
    monkeypatch.setitem(STAGES, row.name, row)
    yield row
    del config.NAME, sys.modules[MODULE]


def make_app() -> typer.Typer:
    app = typer.Typer()
    add_stage_commands(app)
    return app


def invoke(*args: str) -> Result:
    return CliRunner().invoke(make_app(), args, catch_exceptions=False)


def list_commands(app: typer.Typer) -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    for name, command in dict[str, Any](typer.main.get_command(app).commands).items():  # type: ignore[attr-defined]
        found |= {(name, below) for below in getattr(command, "commands", ())} or {(name,)}
    return found


def test_every_row_with_a_summary_has_its_command_and_no_other_row(stage: Stage):
    assert list_commands(make_app()) == {row.command for row in STAGES.values() if row.summary}
    assert stage.summary in invoke("--help").stdout


def test_a_row_of_two_words_is_a_command_in_a_group(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(STAGES, NAME, Stage(stage.config, MODULE, ("corpus", "words"), stage.summary))
    assert {("corpus", "build"), ("corpus", "words")} <= list_commands(make_app())
    assert invoke("corpus", "words", "--dry-run").stdout.startswith("# presto corpus words\n")


def test_only_a_stage_that_trains_may_be_resumed(stage: Stage):
    assert invoke(NAME, "--resume", "0" * 16).exit_code == 2
    assert "--resume" in invoke("train-teacher", "--help").stdout


def test_the_dry_run_shows_what_would_run_and_runs_nothing(stage: Stage, empty: Path):
    done = invoke(NAME, "made_up.words=abc", "made_up.copies=2", "storage.root=store", "--dry-run")
    assert done.exit_code == 0
    settings = yaml.safe_load(done.stdout)
    assert settings["made_up"] == {"words": "abc", "copies": 2}
    config = stage.config(**settings)
    comments = done.stdout.splitlines()
    assert comments[:3] == ["# presto made-up", "# characters: 6", f"# run_id: {config.run_id()}"]
    assert list(empty.iterdir()) == []


def test_settings_come_from_a_preset_and_wrong_ones_are_refused_by_name(stage: Stage, empty: Path):
    (empty / "mine.yaml").write_text("made_up: {words: abc}\nseed: 3\n")
    settings = yaml.safe_load(invoke(NAME, "mine.yaml", "seed=4", "--dry-run").stdout)
    assert (settings["made_up"]["words"], settings["seed"]) == ("abc", 4)
    for wrong, named in (("made_up.wrods=x", "wrods"), ("made_up.copies=0", "made_up.copies")):
        with pytest.raises(ConfigError, match=named):
            invoke(NAME, wrong, "--dry-run")


# over 2 s where it is the first test to import what publishes
def test_the_command_makes_an_artifact_that_is_recorded_and_registered(stage: Stage, workdir: Path):
    args = [NAME, "made_up.words=abc", "made_up.copies=2", "storage.root=store"]
    config = stage.config(**yaml.safe_load(invoke(*args, "--dry-run").stdout))
    for _ in range(2):  # the second time finds it done
        assert invoke(*args).exit_code == 0
    (folder,) = Path("store/artifacts").iterdir()
    assert folder.name == config.run_id()
    assert (folder / "words.yaml").read_bytes() == b"abcabc"
    tracker = open_tracker(TrackingConfig())
    assert resolve(tracker.client, "made-up@candidate", "store").id == config.run_id()
    (run,) = tracker.client.search_runs([tracker.experiment_id])
    assert (run.info.status, run.data.params["made_up.words"]) == ("FINISHED", "abc")


def test_the_command_line_of_a_job_names_the_stage_and_its_settings_file(stage: Stage):
    assert StageCommand(NAME, stage.config()).argv("settings.yaml") == [NAME, "settings.yaml"]
