"""Resume by the same command, by run id and by fork; one MLflow run has every step exactly once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.stages import train_teacher
from pipelines.storage.filesystem import open_folder
from pipelines.tracking.client import open_tracker
from pipelines.tracking.tags import RUN_ID
from pipelines.train.resume import ResumeOptions
from presto_core.artifacts.manifest import Artifact
from presto_core.artifacts.run_layout import RUN_FILE
from presto_core.config.schema import TeacherStage
from presto_core.config.sections import TrackingConfig
from presto_core.errors import UserError
from presto_core.training.health import HealthRange
from presto_core.training.teacher import TeacherTraining
from tests.pipelines.test_training_stages import teacher_config, weights_of
from tests.support.checkpoints import is_time
from tests.support.synthetic_dataset import make_dataset


@pytest.fixture
def dataset(workdir: Path) -> str:
    return make_dataset(str(workdir / "data")).uri


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Interrupt the next run in the middle of a step, as by a second Ctrl-C, and no later one."""
    update = TeacherTraining.update

    def update_or_interrupt(self, batch, *, generator):
        if self.state.total_step == at:
            monkeypatch.setattr(TeacherTraining, "update", update)
            raise KeyboardInterrupt
        return update(self, batch, generator=generator)

    monkeypatch.setattr(TeacherTraining, "update", update_or_interrupt)


def begin_run(config: TeacherStage, monkeypatch: pytest.MonkeyPatch, at: int = 5) -> str:
    """Start a run, interrupt it, and return its id."""
    interrupt(monkeypatch, at)
    with pytest.raises(KeyboardInterrupt):
        train_teacher.run(config)
    (run_id,) = open_folder(config.storage.root).child("runs").list_folders()
    return run_id


def series(run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Return the metric histories of the only MLflow run of a run, without times."""
    tracker = open_tracker(TrackingConfig())
    (found,) = tracker.client.search_runs([tracker.experiment_id], f"tags.`{RUN_ID}` = '{run_id}'")
    names = [name for name in found.data.metrics if not is_time(name) and not name.startswith("system/")]
    histories = {name: tracker.client.get_metric_history(found.info.run_id, name) for name in names}
    return {name: [(p.step, p.value) for p in points] for name, points in histories.items()}


def test_settings_are_recorded_at_the_start_and_gone_at_the_end(dataset: str, monkeypatch):
    config = teacher_config("store", dataset)
    run_id = begin_run(config, monkeypatch)
    record = json.loads(Path("store/runs", run_id, RUN_FILE).read_text())
    assert not {"storage", "tracking"} & record["config"].keys()  # a tracking URI may hold a password
    assert TeacherStage(**record["config"], storage=config.storage, tracking=config.tracking) == config
    train_teacher.run(config)
    assert not Path("store/runs", run_id).exists()


def test_a_run_resumed_by_id_ends_with_the_same_bits(dataset: str, monkeypatch, capsys):
    whole = train_teacher.run(teacher_config("whole", dataset))
    config = teacher_config("store", dataset)
    run_id = begin_run(config, monkeypatch)
    resumed = train_teacher.run(config, ResumeOptions(run_id))
    assert "resumed at step 3 of 8" in capsys.readouterr().err
    assert (resumed.id, weights_of(resumed)) == (run_id, weights_of(whole))


def test_other_settings_are_refused_with_the_difference(dataset: str, monkeypatch):
    run_id = begin_run(teacher_config("store", dataset), monkeypatch)
    other = {"teacher.steps": 10, "teacher.optim.learning_rate": 0.5, "loop.log_every": 1}
    message = rf"{run_id}.*teacher\.steps\b.*8.*10.*teacher\.optim\.learning_rate\b.*0\.001.*0\.5.*--fork"
    with pytest.raises(UserError, match=message) as refused:
        train_teacher.run(teacher_config("store", dataset, **other), ResumeOptions(run_id))
    assert "loop.log_every" not in str(refused.value)
    moved = make_dataset(str(Path("elsewhere").absolute())).uri  # the same id in another location
    assert train_teacher.run(teacher_config("store", moved), ResumeOptions(run_id)).id == run_id


def test_a_fork_starts_from_the_newest_checkpoint_and_remembers_it(dataset: str, monkeypatch, capsys):
    run_id = begin_run(teacher_config("store", dataset), monkeypatch)
    longer = teacher_config("store", dataset, **{"teacher.steps": 10})
    child = train_teacher.run(longer, ResumeOptions(run_id, fork=True))
    assert "resumed at step 3 of 10" in capsys.readouterr().err
    assert child.id not in (run_id, train_teacher.run(longer).id)
    assert child.manifest["parents"] == {"dataset": "0" * 16, "forked_from": f"{run_id}/step-000000003"}
    tracker = open_tracker(TrackingConfig())
    (found,) = tracker.client.search_runs([tracker.experiment_id], f"tags.`{RUN_ID}` = '{child.id}'")
    assert found.data.tags["presto.parent.forked_from"] == f"{run_id}/step-000000003"
    assert train_teacher.run(teacher_config("store", dataset)).id == run_id  # the run it came from is unaffected


def test_an_interrupted_fork_resumes_by_id_though_its_origin_is_gone(dataset: str, monkeypatch, capsys):
    first = begin_run(teacher_config("store", dataset), monkeypatch)
    longer = teacher_config("store", dataset, **{"teacher.steps": 10})
    interrupt(monkeypatch, at=8)
    with pytest.raises(KeyboardInterrupt):
        train_teacher.run(longer, ResumeOptions(first, fork=True))
    (child,) = set(open_folder("store").child("runs").list_folders()) - {first}
    train_teacher.run(teacher_config("store", dataset))
    assert train_teacher.run(longer, ResumeOptions(child)).id == child
    assert "resumed at step 6 of 10" in capsys.readouterr().err


def test_a_fork_of_no_run_is_refused():
    with pytest.raises(UserError, match=r"--fork.*--resume"):
        ResumeOptions(fork=True)


def test_a_run_that_is_not_there_is_refused(dataset: str):
    with pytest.raises(UserError, match="0" * 16):
        train_teacher.run(teacher_config("store", dataset), ResumeOptions("0" * 16))


# --- the record


def test_every_step_is_recorded_once_with_the_values_of_an_undisturbed_run(dataset: str, monkeypatch):
    undisturbed = train_teacher.run(teacher_config("whole", dataset, seed=3))
    expected = series(undisturbed.id)
    tracker = open_tracker(TrackingConfig())
    (found,) = tracker.client.search_runs([tracker.experiment_id], f"tags.`{RUN_ID}` = '{undisturbed.id}'")
    tracker.client.delete_run(found.info.run_id)  # so that the same run_id is recorded again
    config = teacher_config("store", dataset, seed=3)
    for at in (2, 5, 7):  # before the first checkpoint, after rows that are repeated, between two rows
        interrupt(monkeypatch, at)
        with pytest.raises(KeyboardInterrupt):
            train_teacher.run(config)
    resumed = train_teacher.run(config)
    assert weights_of(resumed) == weights_of(undisturbed)
    assert series(resumed.id) == expected
    assert [step for step, _ in expected["dsm_loss"]] == [2, 4, 6, 8]


def test_rows_that_mlflow_never_got_are_sent_after_a_resume(dataset: str, monkeypatch):
    """As if the command were killed before it could send them: they are stored beside the checkpoint."""
    from pipelines.tracking.run import TrackedRun

    config = teacher_config("store", dataset)
    with monkeypatch.context() as deaf:
        deaf.setattr(TrackedRun, "_send", lambda self: None)
        run_id = begin_run(config, monkeypatch, at=7)
    train_teacher.run(config)
    assert [step for step, _ in series(run_id)["dsm_loss"]] == [2, 4, 6, 8]


# --- health


def run_unhealthy(dataset: str, monkeypatch: pytest.MonkeyPatch, **overrides: object) -> Artifact:
    """Run a training whose gradient norm is always outside its range."""
    ranges = {"grad_norm": HealthRange(0.0, 1e-9, "the gradient explodes")}
    monkeypatch.setattr(train_teacher, "STAGE", replace(train_teacher.STAGE, health=ranges))
    keys = {"loop.log_every": 1, "loop.checkpoint_every": 100, "health.patience": 2} | overrides
    return train_teacher.run(teacher_config("store", dataset, **keys))


def test_an_unhealthy_signal_warns_once_and_the_run_continues(dataset: str, monkeypatch, capsys):
    run_unhealthy(dataset, monkeypatch)
    assert capsys.readouterr().err.count("the gradient explodes") == 1


def test_an_unhealthy_signal_that_stays_ends_the_run_where_that_is_wanted(dataset: str, monkeypatch, capsys):
    message = r"grad_norm.*the gradient explodes.*\b4 rows.*step 4\b.*health\.stop"
    with pytest.raises(UserError, match=message):
        run_unhealthy(dataset, monkeypatch, **{"health.stop": True})
    assert "step 2: grad_norm" in capsys.readouterr().err
    run_unhealthy(dataset, monkeypatch)  # the same run: the setting is not part of its result
    assert "resumed at step 5 of 8" in capsys.readouterr().err
