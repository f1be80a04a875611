"""Validation during a run: it does not affect it, is reproducible, loses no row, and can choose the weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipelines.evaluate.validator import Validator, check_validatable, get_validator
from pipelines.inference.model import open_model
from pipelines.stages import distill_layers, distill_steps, train_teacher
from pipelines.storage.filesystem import open_folder
from pipelines.tracking.client import open_tracker
from pipelines.tracking.tags import RUN_ID
from pipelines.train.validation import PREFIX, UPDATE
from presto_core.artifacts.manifest import Artifact
from presto_core.config.loader import ConfigError, load_config
from presto_core.config.schema import LayersStage
from presto_core.config.sections import TrackingConfig
from presto_core.config.validation import ValidationConfig
from presto_core.errors import UserError
from presto_core.training.step_distillation import StepDistillation
from tests.pipelines.test_training_stages import steps_config, teacher_config, weights_of
from tests.support.synthetic_dataset import make_dataset

VALIDATION = {"validation.every": 1, "validation.samples": 8, "validation.embedding": "latents"}
SETTINGS = ValidationConfig(samples=8, embedding="latents")


@pytest.fixture
def dataset(workdir: Path) -> str:
    return make_dataset(str(workdir / "data")).uri


def history(artifact: Artifact, name: str) -> list[tuple[int, float]]:
    tracker = open_tracker(TrackingConfig())
    runs = tracker.client.search_runs([tracker.experiment_id], f"tags.`{RUN_ID}` = '{artifact.id}'")
    assert len(runs) == 1
    points = tracker.client.get_metric_history(runs[0].info.run_id, f"validation.{name}")
    return [(p.step, p.value) for p in points]


def rows_of(artifact: Artifact) -> list[tuple[int, float]]:
    return [(step, metrics[f"{PREFIX}fd"]) for step, metrics in artifact.manifest["validation"]["rows"]]


def test_validation_leaves_the_runs_bits_and_id_as_they_are(dataset: str):
    teacher = train_teacher.run(teacher_config("store", dataset))
    plain = distill_steps.run(steps_config("store", dataset, teacher.id))
    validated = distill_steps.run(steps_config("other", dataset, teacher.uri, **VALIDATION))
    assert validated.id == plain.id
    assert weights_of(validated) == weights_of(plain)


@pytest.mark.parametrize("backlog", [0, 1])
def test_each_update_has_one_row_whose_value_is_that_of_its_weights(dataset: str, backlog: int):
    more = {"steps.generator_updates": 3, "validation.backlog": backlog}
    teacher = train_teacher.run(teacher_config("store", dataset))
    student = distill_steps.run(steps_config("store", dataset, teacher.id, **VALIDATION, **more))
    assert [step for step, _ in rows_of(student)] == [6, 12, 18]
    assert history(student, "fd") == rows_of(student)
    assert history(student, "update") == [(6, 1.0), (12, 2.0), (18, 3.0)]
    for _ in range(2):  # the same weights, the same value, bit for bit
        assert Validator(SETTINGS, dataset)(student.uri)["fd"] == rows_of(student)[-1][1]


def test_a_model_of_other_statistics_is_measured_by_those_of_the_data_set(dataset: str, workdir: Path):
    """Embedded latents divided by 2 have a quarter of the squared distance, whatever the model's statistics."""
    teacher = train_teacher.run(teacher_config("store", dataset))
    shutil.copytree(dataset, workdir / "other")
    manifest = json.loads((workdir / "other/manifest.json").read_text())
    stats = manifest["dataset"]["latents"]
    stats |= {"mean": [mean + 1 for mean in stats["mean"]], "std": [2 * std for std in stats["std"]]}
    (workdir / "other/manifest.json").write_text(json.dumps(manifest))
    own, other = (Validator(SETTINGS, uri)(teacher.uri)["fd"] for uri in (dataset, str(workdir / "other")))
    assert other == pytest.approx(own / 4, rel=1e-3)


@pytest.mark.slow
def test_a_killed_run_loses_no_validation_and_repeats_none(dataset: str, monkeypatch):
    more = VALIDATION | {"steps.generator_updates": 4, "loop.checkpoint_every": 7}
    teacher = train_teacher.run(teacher_config("store", dataset))
    whole = distill_steps.run(steps_config("whole", dataset, teacher.uri, **more))
    expected, update = rows_of(whole), StepDistillation.update
    open_tracker(TrackingConfig()).client.delete_run(open_tracker(TrackingConfig()).find_run(whole.id))

    for last in (9, 16, 22):  # each time some steps after a validation or a checkpoint

        def update_until_killed(self, batch, *, generator, last=last):
            if self.state.total_step == last:
                raise KeyboardInterrupt
            return update(self, batch, generator=generator)

        monkeypatch.setattr(StepDistillation, "update", update_until_killed)
        with pytest.raises(KeyboardInterrupt):
            distill_steps.run(steps_config("store", dataset, teacher.id, **more))
    monkeypatch.setattr(StepDistillation, "update", update)
    resumed = distill_steps.run(steps_config("store", dataset, teacher.id, **more))
    assert weights_of(resumed) == weights_of(whole)
    assert rows_of(resumed) == expected
    assert history(resumed, "fd") == expected


def test_the_best_weights_can_be_kept(dataset: str):
    """With this learning rate the average first improves and then gets far worse, so last and best differ."""
    more: dict[str, object] = {"teacher.steps": 12, "teacher.optim.learning_rate": 0.5, "teacher.optim.warmup_steps": 8}
    more |= VALIDATION | {"teacher.ema_decay": 0.3}
    last = train_teacher.run(teacher_config("store", dataset, **more))
    best = train_teacher.run(teacher_config("store", dataset, **more, **{"validation.keep": "best"}))
    rows = history(last, "mmd")
    assert history(best, "mmd") == rows
    kept = best.manifest["validation"]["kept_update"]
    values = dict(rows)
    assert values[kept] == min(values.values()) < values[12]
    assert Validator(SETTINGS, dataset)(best.uri)["mmd"] == values[kept]
    assert best.id != last.id  # the choice decides the result
    assert not open_folder("store").child("runs").list_folders()


def test_every_stage_that_trains_can_be_validated(dataset: str):
    teacher = train_teacher.run(teacher_config("store", dataset, **VALIDATION))
    keys = {"layers.steps": 2, "layers.global_batch_size": 4, "cluster.num_workers": 0, "storage.root": "store"}
    keys |= {"inputs.dataset": dataset, "inputs.teacher": teacher.id, "loop.log_every": 2}
    layers = distill_layers.run(load_config(LayersStage, None, keys | VALIDATION))
    assert [row[1][UPDATE] for row in layers.manifest["validation"]["rows"]] == [1, 2]
    assert len(rows_of(teacher)) == 8
    assert open_model(layers.uri).card.layer_budget


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.services
def test_the_actor_of_a_ray_session_returns_what_the_process_itself_would(shared_ray, dataset: str):
    import ray

    student_of = train_teacher.run(teacher_config("store", dataset))
    local = Validator(SETTINGS, dataset)(student_of.uri)
    ask = get_validator(SETTINGS, dataset)
    there = ask(student_of.uri)
    assert {k: there[k] for k in ("fd", "mmd", "blocks_run")} == {k: local[k] for k in ("fd", "mmd", "blocks_run")}
    with pytest.raises(UserError, match=r"manifest\.json"):
        ask(f"{student_of.uri}-gone")
    del ask
    assert ray.is_initialized()


@pytest.mark.ray
@pytest.mark.services
@pytest.mark.slow
@pytest.mark.parametrize("held", ["replicate", "shard"])
def test_the_weights_of_several_workers_are_validated_whole(shared_ray, dataset: str, held: str):
    teacher = train_teacher.run(teacher_config("store", dataset))
    two = {"cluster.num_workers": 2, "cluster.cpus_per_worker": 0.7, "cluster.parallel.generator": held}
    student = distill_steps.run(steps_config("store", dataset, teacher.id, **VALIDATION, **two))
    assert [step for step, _ in rows_of(student)] == [6, 12]
    assert Validator(SETTINGS, dataset)(student.uri)["fd"] == rows_of(student)[-1][1]
    assert history(student, "fd") == rows_of(student)


def test_what_cannot_be_validated_is_refused(dataset: str, workdir: Path):
    from pipelines.data.dataset import open_dataset

    with pytest.raises(
        UserError, match=r"clips of 0\.37 s are shorter than the 3 s that validation\.embedding=musicnn"
    ):
        check_validatable(ValidationConfig(), open_dataset(dataset))
    with pytest.raises(UserError, match="has 1 validation rows; validation needs two"):
        check_validatable(SETTINGS, make_dataset(str(workdir / "few"), held_out_rows=1))
    with pytest.raises(ConfigError, match="keep=best"):
        steps_config("store", dataset, "x", **{"validation.keep": "best"})
