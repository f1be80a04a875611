"""What is around every stage: reuse, records, registration, cleaning up, what it asks a cluster for, its dry run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cluster.session import READER_CPUS, ClusterError
from pipelines.cluster.shutdown import StoppedError
from pipelines.registry import publish
from pipelines.stages.dry_run import print_config
from pipelines.stages.resources import (
    SkippedError,
    check_stage_fits,
    count_fitting_workers,
    get_stage_requirements,
    list_stages_with_workers,
)
from pipelines.stages.runner import StageContext, run_stage
from pipelines.stages.table import STAGES
from pipelines.storage import lease
from pipelines.storage.filesystem import open_folder
from pipelines.storage.lease import LeaseHeldError, LeaseLostError
from pipelines.storage.lease_file import make_holder
from pipelines.tracking import client
from pipelines.tracking.client import Tracker, open_tracker
from pipelines.tracking.metric_log import METRICS_FOLDER, MetricLog
from pipelines.tracking.settings import MAX_VALUE, WHOLE_SETTINGS
from pipelines.tracking.tags import RUN_ID
from pipelines.train.resume import ResumeOptions
from pipelines.train.runs import close_run, list_runs
from pipelines.train.sweep_hook import Trial
from presto_core.artifacts.manifest import artifact_folder, commit_artifact, run_folder
from presto_core.artifacts.run_layout import LEASE, RUN_FILE
from presto_core.artifacts.store import write_bytes
from presto_core.config.loader import load_config
from presto_core.config.schema import IngestStage, RegistryStage, TeacherStage, stage_configs
from presto_core.config.sections import ClusterConfig, TrackingConfig
from presto_core.config.stage import StageConfig
from presto_core.errors import UserError
from tests.support.processes import PATIENCE_S

NAME = "made-up"
TRIAL = Trial(lambda step, metrics: "", {"mlflow.parentRunId": "p"})


# --- running


def make_config(**keys: object) -> StageConfig:
    return load_config(RegistryStage, None, {"storage.root": "store"} | keys)


def write_artifact(ctx: StageContext) -> None:
    """The work of a stage: rows of metrics beside its checkpoints and in MLflow, then the artifact."""
    log = MetricLog(ctx.scratch.child(METRICS_FOLDER))
    for step in (1, 2):
        log.add(step, {"loss": 1 / step})
        ctx.run.log(step, {"loss": 1 / step})
    log.write(2, log.pop_rows())
    target: dict[str, Any] = {"kind": "report", "artifact_id": ctx.run_id, "parents": ctx.parent_ids}
    commit_artifact(ctx.artifact, **target, config_yaml="", files={"page.json": b"{}"}, details={"report": {}})


@pytest.fixture
def tracker(workdir: Path) -> Tracker:
    return open_tracker(TrackingConfig())


def find_runs(tracker: Tracker, run_id: str) -> list[Any]:
    return list(tracker.client.search_runs([tracker.experiment_id], f"tags.`{RUN_ID}` = '{run_id}'"))


# over 2 s where it is the first test to import what publishes
def test_a_stage_works_once_registers_its_artifact_and_leaves_no_scratch(tracker: Tracker):
    config, calls = make_config(), list[str]()

    def execute(ctx: StageContext) -> None:
        assert ctx.scratch.exists(RUN_FILE)  # its settings are stored before its work
        calls.append(ctx.run_id)
        write_artifact(ctx)

    first = run_stage(NAME, config, execute, register_as="presto-report")
    again = run_stage(NAME, config, execute, register_as="presto-report")
    assert first.id == config.run_id() == again.id
    assert first.manifest == again.manifest
    assert calls == [first.id]
    assert not Path("store/runs", first.id).exists()
    (run,) = find_runs(tracker, first.id)
    assert run.info.status == "FINISHED"
    history = tracker.client.get_metric_history(run.info.run_id, "loss")
    assert [(p.step, p.value) for p in history] == [(1, 1.0), (2, 0.5)]
    (version,) = tracker.client.search_model_versions("name = 'presto-report'")
    assert version.tags["presto.artifact_id"] == first.id


def refuse_work(ctx: StageContext) -> None:
    pytest.fail(f"run {ctx.run_id} was executed")


def refuse_pack(source: Path, target: Path) -> None:
    pytest.fail(f"{source} was packed into {target}")


def read_record(tracker: Tracker, run_id: str) -> dict[str, Any]:
    """All that MLflow has of a run, with every point of its metrics."""
    (run,) = find_runs(tracker, run_id)
    points = {name: tracker.client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return run.to_dictionary() | {
        "points": {n: [(p.step, p.value, p.timestamp) for p in of] for n, of in points.items()}
    }


@pytest.mark.parametrize("trial", [None, TRIAL])
def test_the_record_of_a_finished_run_does_not_change_when_it_is_reused(tracker: Tracker, trial: Trial | None):
    artifact = run_stage(NAME, make_config(), write_artifact, register_as="presto-report")
    before = read_record(tracker, artifact.id)
    other = trial and Trial(trial.on_row, {"mlflow.parentRunId": "another sweep"})
    for _ in range(2):
        assert run_stage(NAME, make_config(), refuse_work, register_as="presto-report", trial=other).id == artifact.id
    assert read_record(tracker, artifact.id) == before
    assert before["data"]["tags"]["mlflow.runName"] == f"{NAME} presto-report {artifact.id}"


def test_the_same_command_twice_at_once_is_one_run(tracker: Tracker):
    def execute(ctx: StageContext) -> None:
        before = read_record(tracker, ctx.run_id)
        with pytest.raises(LeaseHeldError, match=ctx.run_id):
            run_stage(NAME, make_config(), refuse_work, register_as="presto-report")
        assert read_record(tracker, ctx.run_id) == before
        write_artifact(ctx)
        with pytest.raises(LeaseHeldError, match=ctx.run_id):  # the artifact is there, its rows are not in MLflow
            run_stage(NAME, make_config(), refuse_work, register_as="presto-report")

    artifact = run_stage(NAME, make_config(), execute, register_as="presto-report")
    assert [step for step, _, _ in read_record(tracker, artifact.id)["points"]["loss"]] == [1, 2]
    assert len(tracker.client.search_model_versions("name = 'presto-report'")) == 1


def test_writers_whose_uploads_are_slow_make_one_version(tracker: Tracker, monkeypatch: pytest.MonkeyPatch):
    """Slower than a lease without renewals lasts."""
    artifact = run_stage(NAME, make_config(), write_artifact, register_as="x", trial=TRIAL)
    upload, uploads = publish._log_files, list[str]()

    def upload_slowly(*args: Any) -> str:
        uploads.append(artifact.id)
        time.sleep(5 * lease.EXPIRY_S)
        return upload(*args)

    monkeypatch.setattr(publish, "_log_files", upload_slowly)
    monkeypatch.setattr(lease, "EXPIRY_S", 0.2)
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    arguments: dict[str, Any] = {
        "mlflow_run": tracker.find_run(artifact.id),
        "stage": NAME,
        "root": open_folder("store"),
    }
    with ThreadPoolExecutor(2) as pool:
        begun = [
            pool.submit(publish.publish, tracker.client, "presto-report", artifact, pack=refuse_pack, **arguments)
            for _ in range(2)
        ]
        assert [one.result(PATIENCE_S).number for one in begun] == [1, 1]
    assert uploads == [artifact.id]
    assert len(tracker.client.search_model_versions("name = 'presto-report'")) == 1


WORK_UNTIL_KILLED = """
import os, signal
from tests.pipelines.test_stage_runner import NAME, make_config, run_stage, write_artifact
def execute(ctx):
    if ctx.run_id == make_config(seed=1).run_id():
        write_artifact(ctx)
        ctx.run.flush_all()
    os.kill(os.getpid(), signal.SIGKILL)
for seed in (0, 1):
    if not (pid := os.fork()):
        run_stage(NAME, make_config(seed=seed), execute, register_as="presto-report")
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
"""


def test_runs_that_were_killed_are_listed_closed_and_finished_by_the_same_command(tracker: Tracker):
    """The first before its artifact, the second after it and before its registration."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", WORK_UNTIL_KILLED], env=environment, timeout=PATIENCE_S, check=True)
    root = open_folder("store")
    listed = {run.run_id: run for run in list_runs(root, tracker)}
    for seed, state in enumerate(("killed", "done")):
        run = listed.pop(make_config(seed=seed).run_id())
        assert (run.stage, run.state, run.holder) == (NAME, state, "")
        assert close_run(root, tracker, run.run_id) == "RUNNING"  # at once: nobody holds it
        artifact = run_stage(NAME, make_config(seed=seed), write_artifact, register_as="presto-report")
        record = read_record(tracker, artifact.id)
        assert record["info"]["status"] == "FINISHED"
        assert [step for step, _, _ in record["points"]["loss"]] == [1, 2]
    assert listed == {}
    assert list_runs(root, tracker) == []


def test_a_run_that_another_process_took_over_is_stopped_and_left_to_it(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lease, "RENEW_S", 0.05)

    def execute(ctx: StageContext) -> None:
        take_over(ctx)
        time.sleep(PATIENCE_S)
        pytest.fail("its work went on")

    with pytest.raises(LeaseLostError, match="process 7 on far"):
        run_stage(NAME, make_config(), execute, register_as="presto-report")
    (run,) = find_runs(tracker, make_config().run_id())
    assert run.info.status == "RUNNING"  # for the other one


def take_over(ctx: StageContext) -> None:
    taker = replace(make_holder(), host="far", machine="far", pid=7)
    write_bytes(open_folder(ctx.scratch.uri).child(LEASE), "000002.json", json.dumps(taker.__dict__).encode())


def lose_before_a_checkpoint(ctx: StageContext) -> None:
    take_over(ctx)
    MetricLog(ctx.scratch.child(METRICS_FOLDER)).write(1, [(1, {"loss": 1.0})])


def lose_before_rows_are_sent(ctx: StageContext) -> None:
    take_over(ctx)
    ctx.run.log(1, {"loss": 1.0})
    ctx.run.flush_all()


def lose_before_the_artifact(ctx: StageContext) -> None:
    take_over(ctx)
    write_artifact(replace(ctx, scratch=open_folder(ctx.scratch.uri)))


def lose_after_the_artifact(ctx: StageContext) -> None:
    write_artifact(ctx)
    ctx.run.flush_all()
    take_over(ctx)


LOSSES = [lose_before_a_checkpoint, lose_before_rows_are_sent, lose_before_the_artifact, lose_after_the_artifact]


@pytest.mark.parametrize("lose", LOSSES)
def test_whoever_lost_a_run_without_noticing_is_stopped_by_its_next_change(
    tracker: Tracker, lose: Callable[[StageContext], None]
):
    with pytest.raises(LeaseLostError, match="process 7 on far"):
        run_stage(NAME, make_config(), lose, register_as="presto-report")
    (run,) = find_runs(tracker, make_config().run_id())
    assert run.info.status == "RUNNING"  # for the other one
    assert ("loss" in run.data.metrics) == (lose is lose_after_the_artifact)
    assert tracker.client.search_model_versions("name = 'presto-report'") == []
    root = open_folder("store")
    assert run_folder(root, make_config().run_id()).exists(RUN_FILE)
    assert artifact_folder(root, make_config().run_id()).exists() == (lose is lose_after_the_artifact)


def test_a_command_that_waits_reuses_what_the_holder_made(tracker: Tracker, capsys: pytest.CaptureFixture[str]):
    begun, go_on = threading.Event(), threading.Event()

    def work(ctx: StageContext) -> None:
        begun.set()
        assert go_on.wait(PATIENCE_S)
        write_artifact(ctx)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run_stage, NAME, make_config(), work, register_as="presto-report")
        assert begun.wait(PATIENCE_S)
        waiting = make_config(**{"cluster.wait_for_run": True})
        second = pool.submit(run_stage, NAME, waiting, refuse_work, register_as="presto-report")
        assert not wait([second], timeout=1).done
        go_on.set()
        assert first.result(PATIENCE_S).id == second.result(PATIENCE_S).id
    assert len(tracker.client.search_model_versions("name = 'presto-report'")) == 1


def test_what_a_killed_command_did_not_record_is_recorded_by_the_next(tracker: Tracker):
    run_id = make_config().run_id()
    tracker.client.create_run(tracker.experiment_id, tags={RUN_ID: run_id})
    run_stage(NAME, make_config(), write_artifact, register_as="presto-report")
    (run,) = find_runs(tracker, run_id)
    assert run.data.params["seed"] == "0"


def test_a_setting_too_long_for_mlflow_is_kept_whole_and_marked_as_cut(tracker: Tracker):
    long = "x" * 12_000
    config = make_config(**{"inputs.dataset": long})
    run_stage(NAME, config, write_artifact, register_as="presto-report")
    (run,) = find_runs(tracker, config.run_id())
    cut = run.data.params["inputs.dataset"]
    assert len(cut) == MAX_VALUE
    assert "12000" in cut
    assert WHOLE_SETTINGS in cut
    path = tracker.client.download_artifacts(run.info.run_id, WHOLE_SETTINGS)
    assert json.loads(Path(path).read_text()) == {"inputs.dataset": long}


def test_where_to_look_is_printed_once(
    tracker: Tracker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(client, "_shown", set())
    for seed in (1, 2):
        run_stage(NAME, make_config(seed=seed), write_artifact, register_as="presto-report")
    shown = capsys.readouterr().err
    assert shown.count(f"mlflow ui --backend-store-uri {tracker.uri}") == 1


def test_other_settings_and_other_inputs_are_other_runs(workdir: Path):
    ids = {
        run_stage(NAME, make_config(seed=seed), write_artifact, register_as="x", inputs=inputs, trial=TRIAL).id
        for seed in (0, 1)
        for inputs in (None, {"audio": "a"}, {"audio": "b"})
    }
    assert len(ids) == 6


def test_the_run_of_a_sweep_is_tagged_and_neither_registered_nor_plotted(tracker: Tracker):
    def execute(ctx: StageContext) -> None:
        ctx.save_plots({"losses.png": lambda: pytest.fail("a trial is plotted by its sweep")})
        write_artifact(ctx)

    artifact = run_stage(NAME, make_config(), execute, register_as="presto-report", trial=TRIAL)
    (run,) = find_runs(tracker, artifact.id)
    assert run.data.tags["mlflow.parentRunId"] == "p"
    assert list(tracker.client.search_registered_models()) == []
    assert not Path(".presto/reports").exists()


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), "KILLED"), (StoppedError("x"), "KILLED"), (UserError("x"), "FAILED"), (OSError(), "FAILED")],
)
def test_a_run_that_ends_early_keeps_its_scratch_and_resumes(tracker: Tracker, error: BaseException, status: str):
    config = make_config()

    def raise_error(ctx: StageContext) -> None:
        raise error

    with pytest.raises(type(error)):
        run_stage(NAME, config, raise_error, register_as="x", trial=TRIAL)
    scratch = run_folder(open_folder("store"), config.run_id())
    assert scratch.exists(RUN_FILE)
    assert [run.info.status for run in find_runs(tracker, config.run_id())] == [status]
    artifact = run_stage(
        NAME, config, write_artifact, register_as="x", trial=TRIAL, resume=ResumeOptions(config.run_id())
    )
    assert artifact.id == config.run_id()
    assert [run.info.status for run in find_runs(tracker, config.run_id())] == ["FINISHED"]


def test_a_stage_that_commits_nothing_is_refused(workdir: Path):
    with pytest.raises(UserError, match="manifest"):
        run_stage(NAME, make_config(), lambda ctx: None, register_as="x", trial=TRIAL)


# --- the table


def test_every_configuration_has_one_row_and_commands_are_different():
    assert set(STAGES) == set(stage_configs())
    commands = [row.command for row in STAGES.values() if row.command]
    assert len(commands) == len(set(commands))
    for row in STAGES.values():
        assert bool(row.summary) == bool(row.module)  # what runs by itself has a command of its own
        assert not row.trains or (row.workers, row.writes_run) == ("train", True)
        for path in (*row.input_paths, *row.output_paths):
            section, _, key = path.partition(".")
            assert key in type(getattr(row.config(), section)).model_fields


# --- what it asks a cluster for


# over 2 s where it is the first test to import the encoder
def test_a_training_stage_needs_workers_with_readers_and_others_need_actors():
    cluster = ClusterConfig(num_workers=3, cpus_per_worker=2, gpus_per_worker=1, data_workers=4)
    assert get_stage_requirements("train-teacher", cluster) == (
        {"cpus": pytest.approx(3 * (2 + READER_CPUS)), "gpus": 3},
        {"CPU": 2, "GPU": 1},
        3,
    )
    assert get_stage_requirements("evaluate", cluster) == ({"cpus": 8, "gpus": 4}, {"CPU": 2, "GPU": 1}, 4)
    ingest, _, _ = get_stage_requirements(IngestStage.NAME, cluster)
    assert ingest["cpus"] > 8  # next to a GPU, decoding needs CPUs of its own


def test_an_elastic_group_needs_its_least_number_of_workers():
    needs, _, count = get_stage_requirements("train-teacher", ClusterConfig(num_workers=8, min_workers=2))
    assert (count, needs["cpus"]) == (2, pytest.approx(2 * (ClusterConfig().cpus_per_worker + READER_CPUS)))


@pytest.mark.parametrize(
    ("nodes", "worker", "count"),
    [
        ([{"CPU": 4}, {"CPU": 3}], {"CPU": 2.0}, 3),
        ([{"CPU": 1}] * 9, {"CPU": 2.0}, 0),  # enough in sum, on no node
        ([{"CPU": 16, "GPU": 1}, {"CPU": 16}], {"CPU": 1.0, "GPU": 0.5}, 2),
        ([{"CPU": 0.3}], {"CPU": 0.1}, 3),  # 0.3 / 0.1 is below 3 in floating point
        ([], {"CPU": 1.0}, 0),
    ],
)
def test_workers_fit_node_by_node(nodes: list[dict[str, float]], worker: dict[str, float], count: int):
    assert count_fitting_workers(nodes, worker) == count


def test_a_stage_fits_in_sum_and_node_by_node_or_is_refused():
    cluster = ClusterConfig(num_workers=2, cpus_per_worker=2)
    assert check_stage_fits("train-teacher", cluster, [{"CPU": 3}, {"CPU": 3}])
    too_small: list[list[dict[str, float]]] = [[{"CPU": 2}, {"CPU": 2}], [{"CPU": 3}, *[{"CPU": 1.0}] * 4]]
    for nodes in too_small:
        with pytest.raises(ClusterError, match="num_workers"):
            check_stage_fits("train-teacher", cluster, nodes)
    with pytest.raises(SkippedError):
        check_stage_fits("train-teacher", ClusterConfig(num_workers=0), [])
    with pytest.raises(SkippedError):
        check_stage_fits("evaluate", ClusterConfig(num_workers=0, data_workers=1), [])


def test_stages_with_workers_are_those_that_make_artifacts_with_them():
    assert set(list_stages_with_workers()) == {"ingest", "train-teacher", "distill-layers", "distill-steps", "evaluate"}


# --- the dry run


def test_a_dry_run_prints_settings_that_resolve_to_the_same_run(capsys: pytest.CaptureFixture[str]):
    config = load_config(TeacherStage, None, {"teacher.steps": 7, "inputs.dataset": "d" * 16})
    print_config("train-teacher", config)
    shown = capsys.readouterr().out
    comments = [line for line in shown.splitlines() if line.startswith("# ")]
    assert comments[0] == "# presto train-teacher"
    assert f"# rows_seen: {7 * config.teacher.global_batch_size}" in comments
    assert "d" * 16 in next(line for line in comments if line.startswith("# run_id"))
    assert TeacherStage(**yaml.safe_load(shown)) == config
