"""A sweep for real: trials in Ray Tune, stopped, failed, repeated and recorded; killed, and gone on with."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from ray.util.placement_group import placement_group_table

from pipelines.stages import distill_steps
from pipelines.storage.filesystem import open_folder
from pipelines.sweep import report as sweep_report
from pipelines.sweep import runner as sweep
from pipelines.sweep.plan import make_plan
from pipelines.sweep.store import (
    DEFAULT,
    FAILED,
    FINISHED,
    PRUNED,
    TRIAL,
    WINNER,
    SweepStore,
    TrialRecord,
    sweep_folder,
)
from pipelines.tracking.client import open_tracker
from pipelines.tracking.tags import RUN_ID
from presto_core.artifacts.manifest import artifact_folder, run_folder
from presto_core.config.loader import load_config
from presto_core.config.schema import StepsStage
from presto_core.config.sections import TrackingConfig
from presto_core.training.checkpoint import read_newest_checkpoint
from tests.support.processes import PRESTO, Attempt, wait_for
from tests.support.tiny_sweep import UPDATES, SweepInputs, make_sweep_inputs

LEARNING_RATE = "steps.generator_optim.learning_rate"
BETTER, WORSE, ABSURD = 1e-3, 1e-7, 1e30  # than the preset's
ONE_AT_A_TIME = {"sweep.search": "grid", "sweep.concurrent": 1, "sweep.reduction": 2, "sweep.grace": 1}
RATES = {"sweep.domains": json.dumps({LEARNING_RATE: [BETTER, WORSE]})}
A_RANGE = json.dumps({LEARNING_RATE: {"low": 1e-5, "high": 1e-3, "log": True}})
SAVED_WHEN_STOPPED = {"sweep.keep_stopped": True, "loop.checkpoint_every": 1000, "steps.generator_updates": 12}
PATIENCE_S = 400


@pytest.fixture
def sweep_inputs(workdir: Path) -> SweepInputs:
    return make_sweep_inputs(workdir)


def records_of(inputs: SweepInputs) -> dict[str, TrialRecord]:
    (sweep_id,) = open_folder(inputs.root).child("sweeps").list_folders()
    return SweepStore(sweep_folder(open_folder(inputs.root), sweep_id)).load_all()


def list_child_runs(parent: str) -> list[Any]:
    tracker = open_tracker(TrackingConfig())
    return list(tracker.client.search_runs([tracker.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'"))


@pytest.mark.ray
@pytest.mark.services
def test_a_sweep_ends_in_an_answer_and_is_not_run_again(shared_ray, sweep_inputs: SweepInputs, workdir: Path, capsys):
    domains = json.dumps({LEARNING_RATE: [BETTER, WORSE, ABSURD]})
    plan = sweep_inputs.plan(**ONE_AT_A_TIME, **{"sweep.domains": domains})
    result = sweep.run(plan)
    trials = {r.settings.get(LEARNING_RATE): r for r in records_of(sweep_inputs).values() if r.role == TRIAL}
    states = {rate: record.state for rate, record in trials.items()}
    assert states == {None: FINISHED, BETTER: FINISHED, WORSE: PRUNED, ABSURD: FAILED}
    assert "are not finite; lower the learning rate" in trials[ABSURD].reason
    assert sorted(trials[None].rows) == list(range(1, UPDATES + 1))
    assert trials[WORSE].last_update == 1
    assert trials[WORSE].steps < trials[None].steps == 2 * UPDATES

    assert result["winner"]["settings"] == {LEARNING_RATE: BETTER}
    assert [len(result["repeats"][role]["values"]) for role in (WINNER, DEFAULT)] == [2, 2]
    assert result["saved"]["steps_trained"] < result["saved"]["steps_of_all_to_the_end"]

    runs = {run.data.tags[RUN_ID]: run for run in list_child_runs(result["mlflow_run"])}
    assert set(runs) == set(records_of(sweep_inputs))
    ended = {run_id: (run.info.status, run.data.tags["presto.trial"]) for run_id, run in runs.items()}
    status = {FINISHED: "FINISHED", PRUNED: "KILLED", FAILED: "FAILED"}
    assert ended == {run_id: (status[r.state], r.state) for run_id, r in records_of(sweep_inputs).items()}
    assert runs[result["winner"]["run_id"]].data.params[LEARNING_RATE] == str(BETTER)
    registered = open_tracker(TrackingConfig()).client.search_model_versions("name = 'presto-generator'")
    assert [v.tags["presto.artifact_id"] for v in registered] == [result["winner"]["artifact"]]
    # what was stopped early leaves no checkpoints
    assert not set(open_folder(sweep_inputs.root).child("runs").list_folders()) & {trials[WORSE].run_id}

    before = records_of(sweep_inputs)
    capsys.readouterr()
    again = sweep.run(plan)
    assert "sweep: 8 trials" in capsys.readouterr().err
    assert records_of(sweep_inputs) == before
    assert again["winner"] == result["winner"]
    _check_winner_reproduces(result)


def _check_winner_reproduces(result: dict[str, Any]) -> None:
    """By the command that is printed, and by the preset that holds only the difference."""
    args = shlex.split(result["winner"]["command"])[2:]
    parents = {role: result["parents"][role] for role in ("dataset", "teacher")}
    assert load_config(StepsStage, None, args).run_id(parents) == result["winner"]["run_id"]
    preset = sweep_report.report_folder(result["id"]) / "winner.yaml"
    assert load_config(StepsStage, preset).run_id(parents) == result["winner"]["run_id"]
    page = (preset.parent / "index.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/png;base64,") >= 3


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_sweep_resumes_and_leaves_nobody_behind(
    sweep_inputs: SweepInputs, workdir: Path, begin: Callable[..., Attempt]
):
    """kill -9 of the command once a trial is done: no finished trial runs again, and the rungs are remembered."""
    settings = {**ONE_AT_A_TIME, **RATES, "cluster.cpus": 2, "cluster.object_store_mb": 100, "sweep.repeats": 0}
    command = [PRESTO, "sweep", *sweep_inputs.args(**settings)]
    first = begin(command, workdir)
    assert wait_for(lambda: _has_finished_trial(sweep_inputs) or not first.is_running, PATIENCE_S, step_s=0.1), (
        first.stderr
    )
    if first.is_running:  # a machine that is busy may have let it come to its end meanwhile
        first.kill()
    first.end()
    done = {run_id: r for run_id, r in records_of(sweep_inputs).items() if r.is_done}
    again = begin(command, workdir)
    assert again.exit_code() == 0, again.stderr
    assert f"sweep: {len(done)} trials" in again.stderr
    after = records_of(sweep_inputs)
    assert {run_id: after[run_id] for run_id in done} == done
    states = {r.settings.get(LEARNING_RATE): r.state for r in after.values()}
    assert states == {None: FINISHED, BETTER: FINISHED, WORSE: PRUNED}


def _has_finished_trial(inputs: SweepInputs) -> bool:
    return bool(open_folder(inputs.root).child("sweeps").list_folders()) and any(
        r.is_done for r in records_of(inputs).values()
    )


@pytest.mark.ray
@pytest.mark.slow
def test_ctrl_c_ends_all_of_it_and_the_same_command_resumes(
    sweep_inputs: SweepInputs, workdir: Path, begin: Callable[..., Attempt]
):
    settings = {**ONE_AT_A_TIME, **RATES, "cluster.cpus": 2, "sweep.repeats": 0, "steps.generator_updates": 60}
    settings["validation.every"] = 20
    command = [PRESTO, "sweep", *sweep_inputs.args(**settings)]
    first = begin(command, workdir)
    assert wait_for(lambda: first.workers("ray::ImplicitFunc") or not first.is_running, PATIENCE_S, step_s=0.1)
    first.process.send_signal(signal.SIGINT)
    assert first.process.wait(PATIENCE_S) == 130, first.stderr
    assert "interrupted" in first.stderr
    first.end()  # nobody is left but Ray's agents, which it waits for
    assert begin(command, workdir).exit_code() == 0


@pytest.mark.ray
@pytest.mark.services
@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        # trials whose worker Ray Train places
        {"cluster.num_workers": 1, "cluster.cpus_per_worker": 0.8, **SAVED_WHEN_STOPPED},
        {"sweep.search": "optuna", "sweep.metrics": "[fd,blocks]", "sweep.samples": 6, "sweep.domains": A_RANGE},
        {"sweep.scheduler": "median"},
        {"sweep.scheduler": "none"},
    ],
    ids=["nested", "optuna", "median", "none"],
)
def test_every_way_to_sweep_comes_to_an_answer(shared_ray, sweep_inputs: SweepInputs, settings: dict[str, object]):
    result = sweep.run(sweep_inputs.plan(**ONE_AT_A_TIME | RATES | settings))
    assert result["winner"]
    assert {row["state"] for row in result["trials"]} <= {FINISHED, PRUNED}
    wanted = settings.get("sweep.samples", 3)
    assert len(result["trials"]) == wanted
    if settings.get("sweep.scheduler") == "none":
        assert result["saved"]["share"] == 1.0
    assert not [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    if settings.get("sweep.keep_stopped"):  # the last trial as well saved its state before its process was given up
        (stopped,) = (row["run_id"] for row in result["trials"] if row["state"] == PRUNED)
        root = open_folder(sweep_inputs.root)
        saved = read_newest_checkpoint(run_folder(root, stopped).child("checkpoints"))
        assert saved or artifact_folder(root, stopped).exists()  # it heard of it only when it was done


@pytest.mark.ray
@pytest.mark.services
@pytest.mark.slow
def test_a_run_that_was_made_without_a_sweep_is_validated_and_not_trained(shared_ray, sweep_inputs: SweepInputs):
    plan = sweep_inputs.plan(**ONE_AT_A_TIME, **RATES, **{"sweep.repeats": 0})
    alone = distill_steps.run(cast(StepsStage, plan.make_config({"validation.every": 0})))
    result = sweep.run(plan)
    own = next(row for row in result["trials"] if not row["settings"])
    assert own["artifact"] == own["run_id"] == alone.id
    assert list(own["rows"]) == [UPDATES]
    assert own["steps"] == own["full_steps"] == 2 * UPDATES


@pytest.mark.ray
@pytest.mark.services
@pytest.mark.slow
def test_trials_on_s3_share_one_copy_of_what_they_read(shared_ray, workdir: Path, monkeypatch, tmp_path: Path):
    from pipelines.storage.node_cache import CACHE_VAR

    monkeypatch.setenv(CACHE_VAR, str(tmp_path / "near"))
    inputs = make_sweep_inputs(workdir, root="s3://latents/sweep-test/store", dataset="s3://latents/sweep-test/data")
    result = sweep.run(inputs.plan(**ONE_AT_A_TIME, **RATES))
    assert result["winner"]["settings"] == {LEARNING_RATE: BETTER}
    assert len([p for p in (tmp_path / "near").iterdir() if p.is_dir()]) >= 1


def test_a_plan_is_refused_where_its_budgets_do_not_fit_the_teacher(sweep_inputs: SweepInputs):
    from presto_core.errors import UserError

    with pytest.raises(UserError, match=r"made for 8 blocks and teacher \w+ has 2; set sweep\.depth=2"):
        sweep.run(sweep_inputs.plan(**{"sweep.spaces": "[layers]"}))
    assert make_plan(sweep_inputs.args(**{"sweep.spaces": "[layers]", "sweep.depth": 2})).depth == 2
