"""`presto runs`: lists without a subcommand, prints JSON, and closes only what MLflow has as running."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from infra.cli.runs import _format_age, app
from pipelines.storage.filesystem import open_folder
from pipelines.tracking.client import Tracker, open_tracker
from pipelines.tracking.tags import RUN_ID
from pipelines.train.resume import record_run_start
from pipelines.train.runs import ACTIVE_S
from presto_core.artifacts.manifest import run_folder
from presto_core.artifacts.run_layout import RUN_FILE
from presto_core.config.loader import ConfigError, load_config
from presto_core.config.schema import TeacherStage
from presto_core.config.sections import TrackingConfig
from presto_core.errors import UserError

ROOT = "storage.root=store"
PARENTS = {"dataset": "d" * 16}


@pytest.fixture
def tracker(workdir: Path) -> Tracker:
    return open_tracker(TrackingConfig())


def invoke(*args: str) -> Result:
    return CliRunner().invoke(app, args, catch_exceptions=False)


def start_run(tracker: Tracker, seed: int, *, status: str = "RUNNING", age_s: float = 2 * ACTIVE_S) -> str:
    """Leave an unfinished run, as MLflow has it, and return its id."""
    config = load_config(TeacherStage, None, {"seed": seed, "inputs.dataset": PARENTS["dataset"]})
    root, run_id = open_folder("store"), config.run_id(PARENTS)
    record_run_start(run_folder(root, run_id), root, "train-teacher", config, PARENTS)
    past = time.time() - age_s
    os.utime(Path("store/runs", run_id, RUN_FILE), (past, past))
    mlflow_id = tracker.client.create_run(tracker.experiment_id, tags={RUN_ID: run_id}).info.run_id
    if status != "RUNNING":
        tracker.client.set_terminated(mlflow_id, status=status)
    return run_id


def read_status(tracker: Tracker, run_id: str) -> str:
    return str(tracker.client.get_run(tracker.find_run(run_id)).info.status)


def list_json(*args: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(invoke(*args, ROOT, "--json").stdout)
    return rows


def test_without_a_subcommand_runs_are_listed(tracker: Tracker):
    assert list_json() == list_json("list") == []
    old, new = start_run(tracker, 1, age_s=9000), start_run(tracker, 2, status="FAILED", age_s=60)
    rows = list_json()
    assert rows == list_json("list")
    assert [(row["run_id"], row["state"], row["step"]) for row in rows] == [
        (new, "failed", None),
        (old, "running", None),
    ]
    table = invoke(ROOT).stdout
    assert table.index(new) < table.index(old)
    assert "train-teacher" in table


def test_the_group_alone_lists_too_and_help_is_the_groups(tracker: Tracker):
    assert invoke().exit_code == 0
    assert {"list", "close"} <= set(invoke("--help").stdout.split())


def test_a_running_run_is_closed(tracker: Tracker):
    run_id = start_run(tracker, 1)
    assert invoke("close", run_id, ROOT).exit_code == 0
    assert read_status(tracker, run_id) == "KILLED"
    assert [row["state"] for row in list_json()] == ["stopped"]


@pytest.mark.parametrize("status", ["KILLED", "FAILED", "FINISHED"])
def test_close_refuses_a_run_that_is_not_running(tracker: Tracker, status: str):
    run_id = start_run(tracker, 1, status=status)
    for force in ((), ("--force",)):
        with pytest.raises(UserError, match=run_id):
            invoke("close", run_id, ROOT, *force)
    assert read_status(tracker, run_id) == status


def test_close_refuses_a_run_that_wrote_a_moment_ago_unless_forced(tracker: Tracker):
    run_id = start_run(tracker, 1, age_s=0)
    with pytest.raises(UserError, match=run_id):
        invoke("close", run_id, ROOT)
    assert read_status(tracker, run_id) == "RUNNING"
    assert invoke("close", run_id, ROOT, "--force").exit_code == 0
    assert read_status(tracker, run_id) == "KILLED"


def test_dry_runs_change_nothing_and_unknown_runs_and_keys_are_refused(tracker: Tracker):
    run_id = start_run(tracker, 1)
    assert run_id in invoke("close", run_id, ROOT, "--dry-run").stderr
    assert invoke("--dry-run", "storage.root=nowhere").exit_code == 0
    assert read_status(tracker, run_id) == "RUNNING"
    with pytest.raises(UserError, match="f" * 16):
        invoke("close", "f" * 16, ROOT)
    with pytest.raises(ConfigError, match="rooot"):
        invoke("storage.rooot=store")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (59, "59 s"), (60, "1 min"), (3 * 3600 + 5, "3 h"), (2 * 86400 + 60, "2 d")],
)
def test_ages_are_in_the_largest_unit_that_they_fill(seconds: int, text: str):
    assert _format_age(datetime.now(UTC) - timedelta(seconds=seconds)) == text
