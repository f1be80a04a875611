"""What is around every stage: reuse, records, registration, cleaning up, what it asks a cluster for, its dry run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cluster.session import READER_CPUS, ClusterError
from pipelines.cluster.shutdown import StoppedError
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
from pipelines.storage.filesystem import open_folder
from pipelines.tracking.client import Tracker, open_tracker
from pipelines.tracking.metric_log import METRICS_FOLDER, MetricLog
from pipelines.tracking.tags import RUN_ID
from pipelines.train.resume import ResumeOptions
from pipelines.train.sweep_hook import Trial
from presto_core.artifacts.manifest import commit_artifact, run_folder
from presto_core.artifacts.run_layout import RUN_FILE
from presto_core.config.loader import load_config
from presto_core.config.schema import IngestStage, RegistryStage, TeacherStage, stage_configs
from presto_core.config.sections import ClusterConfig, TrackingConfig
from presto_core.config.stage import StageConfig
from presto_core.errors import UserError

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
    commit_artifact(ctx.artifact, **target, config_yaml="", files={"page.html": b"<p></p>"}, details={"report": {}})


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
