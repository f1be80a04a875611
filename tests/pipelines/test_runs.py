"""Unfinished runs in a store and a data base: listed, closed, compared with a new one, resumed and forked by id."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save

from pipelines.storage.filesystem import open_folder
from pipelines.tracking.client import Tracker, open_tracker
from pipelines.tracking.tags import RUN_ID
from pipelines.train.resume import (
    FORKED_FROM,
    ResumeOptions,
    differing_settings,
    find_forked_checkpoint,
    record_run_start,
)
from pipelines.train.runs import ACTIVE_S, close_run, explain_new_run, list_runs
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.manifest import artifact_folder, commit_artifact, run_folder
from presto_core.artifacts.run_layout import CHECKPOINTS, RUN_FILE
from presto_core.artifacts.store import commit, write_bytes
from presto_core.config.loader import load_config
from presto_core.config.schema import LayersStage, TeacherStage
from presto_core.config.sections import TrackingConfig
from presto_core.errors import UserError
from presto_core.training.checkpoint import SKELETON, TENSORS, read_newest_checkpoint

STAGE, PARENTS = "train-teacher", {"dataset": "d" * 16}


@pytest.fixture
def root(empty: Path) -> Folder:
    return open_folder(str(empty / "store"))


@pytest.fixture
def tracker(workdir: Path) -> Tracker:
    return open_tracker(TrackingConfig())


def make_config(**keys: object) -> TeacherStage:
    return load_config(TeacherStage, None, {"teacher.steps": 50, "inputs.dataset": PARENTS["dataset"]} | keys)


def start_run(root: Folder, config: TeacherStage, *, step: int | None = None, age_s: float = 0.0) -> str:
    """Leave what a run leaves that was killed after a checkpoint at `step`."""
    run_id = config.run_id(PARENTS)
    scratch = run_folder(root, run_id)
    record_run_start(scratch, root, STAGE, config, PARENTS)
    if step is not None:
        save_checkpoint(scratch, step)
    past = time.time() - age_s
    for path in Path(scratch.uri).rglob("*"):
        os.utime(path, (past, past))
    return run_id


def save_checkpoint(scratch: Folder, step: int) -> None:
    files = {TENSORS: save({}), SKELETON: json.dumps({"total_step": step}).encode()}
    target = scratch.child(CHECKPOINTS).child(f"step-{step:09d}")
    commit(target, {"kind": "checkpoint", "total_step": step}, files)


def record_in_mlflow(tracker: Tracker, run_id: str, status: str = "RUNNING") -> str:
    mlflow_id = str(tracker.client.create_run(tracker.experiment_id, tags={RUN_ID: run_id}).info.run_id)
    if status != "RUNNING":
        tracker.client.set_terminated(mlflow_id, status=status)
    return mlflow_id


def read_status(tracker: Tracker, mlflow_id: str) -> str:
    return str(tracker.client.get_run(mlflow_id).info.status)


# --- the list


def test_runs_are_listed_newest_first_with_step_and_state(root: Folder, tracker: Tracker):
    old = start_run(root, make_config(seed=1), step=20, age_s=7200)
    save_checkpoint(run_folder(root, old), 5)  # written again later: the step decides, not the time
    new = start_run(root, make_config(seed=2), age_s=60)
    record_in_mlflow(tracker, old, "FAILED")
    found = list_runs(root, tracker)
    assert [(run.run_id, run.stage, run.state, run.step) for run in found] == [
        (new, STAGE, "unknown", None),
        (old, STAGE, "failed", 20),
    ]
    shown = [run.to_dict() for run in found]
    assert (shown[0]["last_checkpoint"], bool(shown[1]["last_checkpoint"])) == (None, True)
    assert found[1].settings == make_config(seed=1).result_config()


@pytest.mark.parametrize(
    ("status", "state"),
    [("RUNNING", "running"), ("KILLED", "stopped"), ("FAILED", "failed"), ("FINISHED", "finished")],
)
def test_the_state_is_what_mlflow_has(root: Folder, tracker: Tracker, status: str, state: str):
    record_in_mlflow(tracker, start_run(root, make_config()), status)
    assert [run.state for run in list_runs(root, tracker)] == [state]


def test_a_run_with_an_artifact_is_done_whatever_mlflow_has(root: Folder, tracker: Tracker):
    run_id = start_run(root, make_config())
    record_in_mlflow(tracker, run_id)
    target: dict[str, Any] = {"kind": "teacher", "artifact_id": run_id, "config_yaml": "", "parents": {}}
    commit_artifact(artifact_folder(root, run_id), **target, files={}, details={})
    assert [run.state for run in list_runs(root, tracker)] == ["done"]


def test_a_folder_without_settings_is_no_run(root: Folder, tracker: Tracker):
    assert list_runs(root, tracker) == []
    write_bytes(run_folder(root, "a" * 16), "other.json", b"{}")
    assert list_runs(root, tracker) == []


# --- closing


def test_a_run_that_was_killed_is_closed_once(root: Folder, tracker: Tracker):
    run_id = start_run(root, make_config(), step=3, age_s=2 * ACTIVE_S)
    mlflow_id = record_in_mlflow(tracker, run_id)
    assert close_run(root, tracker, run_id) == "RUNNING"
    assert read_status(tracker, mlflow_id) == "KILLED"
    with pytest.raises(UserError, match=run_id):
        close_run(root, tracker, run_id)


def test_a_run_that_wrote_a_moment_ago_is_closed_by_force_alone(root: Folder, tracker: Tracker):
    run_id = start_run(root, make_config(), step=3)
    mlflow_id = record_in_mlflow(tracker, run_id)
    with pytest.raises(UserError, match="--force"):
        close_run(root, tracker, run_id)
    assert read_status(tracker, mlflow_id) == "RUNNING"
    close_run(root, tracker, run_id, force=True)
    assert read_status(tracker, mlflow_id) == "KILLED"


def test_a_run_without_files_is_closed_and_one_without_a_record_is_refused(root: Folder, tracker: Tracker):
    mlflow_id = record_in_mlflow(tracker, "e" * 16)
    close_run(root, tracker, "e" * 16)
    assert read_status(tracker, mlflow_id) == "KILLED"
    with pytest.raises(UserError, match="f" * 16):
        close_run(root, tracker, "f" * 16)


# --- what differs


def test_the_most_similar_run_of_the_stage_is_named_with_what_differs(root: Folder, capsys: pytest.CaptureFixture[str]):
    different = start_run(root, make_config(**{"teacher.steps": 9, "network.dim": 64, "seed": 4}), step=7)
    similar = start_run(root, make_config(**{"teacher.steps": 60}), step=30)
    config = make_config()
    explain_new_run(root, STAGE, config.run_id(PARENTS), config, PARENTS)
    shown = capsys.readouterr().err
    assert similar in shown
    assert different not in shown
    assert "teacher.steps: 60 -> 50" in shown
    assert f"--resume {similar} --fork" in shown


def test_runs_of_other_stages_and_the_run_itself_are_not_named(root: Folder, capsys: pytest.CaptureFixture[str]):
    config = make_config()
    run_id = start_run(root, config, step=7)
    explain_new_run(root, STAGE, run_id, config, PARENTS)
    explain_new_run(root, "distill-layers", "a" * 16, config, PARENTS)
    assert capsys.readouterr().err == ""


def test_differences_are_those_that_decide_the_result(root: Folder):
    recorded = json.loads(
        Path(run_folder(root, start_run(root, make_config())).uri, RUN_FILE).read_text(encoding="utf-8")
    )
    assert differing_settings(recorded, make_config(**{"loop.log_every": 3, "name": "other"}), PARENTS) == {}
    other = make_config(**{"teacher.p_train.kind": "karras", "seed": 1})
    found = differing_settings(recorded, other, {"dataset": "e" * 16})
    assert found["seed"] == "0 -> 1"
    assert found["teacher.p_train.mean"].endswith("-> not set")
    assert found["inputs.dataset"] == f'"{"d" * 16}" -> "{"e" * 16}"'


# --- resuming by id


def test_without_an_id_or_with_the_same_settings_nothing_is_forked(root: Folder):
    config = make_config()
    run_id = start_run(root, config, step=3)
    for options in (ResumeOptions(), ResumeOptions(run_id), ResumeOptions(run_id, fork=True)):
        assert find_forked_checkpoint(options, root, STAGE, config, PARENTS) == {}


def test_a_fork_names_the_newest_checkpoint_and_copies_it(root: Folder):
    run_id = start_run(root, make_config(), step=3)
    save_checkpoint(run_folder(root, run_id), 8)
    longer, options = make_config(**{"teacher.steps": 70}), ResumeOptions(run_id, fork=True)
    forked = find_forked_checkpoint(options, root, STAGE, longer, PARENTS)
    assert forked == {FORKED_FROM: f"{run_id}/step-000000008"}
    child = run_folder(root, longer.run_id(PARENTS | forked))
    record_run_start(child, root, STAGE, longer, PARENTS | forked)
    found = read_newest_checkpoint(child.child(CHECKPOINTS))
    assert found
    assert json.loads(found[1][SKELETON]) == {"total_step": 8}
    run_folder(root, run_id).delete()  # the fork goes on by its own id, though its origin is gone
    again = ResumeOptions(longer.run_id(PARENTS | forked))
    assert find_forked_checkpoint(again, root, STAGE, longer, PARENTS) == forked


def test_a_checkpoint_that_is_no_longer_the_newest_is_not_forked(root: Folder):
    run_id = start_run(root, make_config(), step=3)
    forked = {FORKED_FROM: f"{run_id}/step-000000003"}
    save_checkpoint(run_folder(root, run_id), 8)
    with pytest.raises(UserError, match=f"{run_id}/step-000000003"):
        record_run_start(run_folder(root, "a" * 16), root, STAGE, make_config(), PARENTS | forked)
    assert not run_folder(root, "a" * 16).exists(RUN_FILE)


def test_what_cannot_be_resumed_is_refused_by_its_name(root: Folder):
    run_id = start_run(root, make_config())
    longer = make_config(**{"teacher.steps": 70})
    with pytest.raises(UserError, match=r"teacher\.steps.*--fork"):
        find_forked_checkpoint(ResumeOptions(run_id), root, STAGE, longer, PARENTS)
    with pytest.raises(UserError, match=run_id):  # it has no checkpoint yet
        find_forked_checkpoint(ResumeOptions(run_id, fork=True), root, STAGE, longer, PARENTS)
    layers = load_config(LayersStage, None, {"inputs.teacher": "t" * 16} | {"inputs.dataset": PARENTS["dataset"]})
    with pytest.raises(UserError, match=r"train-teacher.*distill-layers"):
        find_forked_checkpoint(ResumeOptions(run_id), root, "distill-layers", layers, PARENTS)
    with pytest.raises(UserError, match="9" * 16):
        find_forked_checkpoint(ResumeOptions("9" * 16), root, STAGE, longer, PARENTS)


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b"\xff"])
def test_a_damaged_record_of_another_run_is_reported_and_stops_nothing(
    root: Folder, tracker: Tracker, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bytes(run_folder(root, "0" * 16), RUN_FILE, content)
    assert list_runs(root, tracker) == []
    explain_new_run(root, "train-teacher", "1" * 16, make_config(), {})
    assert capsys.readouterr().err.count(f"{'0' * 16}/{RUN_FILE}") == 2
