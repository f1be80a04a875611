"""train-teacher and distill-steps as stages: in process, in Ray, on S3, killed and resumed, registered once."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.cluster import session as cluster
from pipelines.cluster.session import ClusterError, count_workers, ray_session, uses_ray_reader
from pipelines.inference.model import open_model
from pipelines.registry.resolve import resolve
from pipelines.stages import distill_steps, train_teacher
from pipelines.storage.filesystem import open_folder
from pipelines.tracking.client import TrackingError, open_tracker
from pipelines.tracking.tags import RUN_ID
from pipelines.train.ray_train import describe_idle_gpus
from presto_core.artifacts.manifest import Artifact
from presto_core.artifacts.store import StoreError, read_file
from presto_core.config.loader import load_config
from presto_core.config.schema import StepsStage, TeacherStage
from presto_core.config.sections import ClusterConfig, TrackingConfig
from presto_core.errors import UserError
from tests.support.synthetic_dataset import SHAPE, make_dataset

TINY = {
    "network.dim": 16,
    "network.depth": 2,
    "network.heads": 2,
    "network.patch": 2,
    "loop.log_every": 2,
    "loop.checkpoint_every": 3,
}
STEPS = {"steps.generator_updates": 2, "steps.global_batch_size": 4, "steps.gan.head_layers": 1}


def teacher_config(root: str, dataset: str, **overrides: object) -> TeacherStage:
    keys = TINY | {"teacher.steps": 8, "teacher.global_batch_size": 4, "cluster.num_workers": 0}
    return load_config(TeacherStage, None, keys | {"storage.root": root, "inputs.dataset": dataset} | overrides)


def steps_config(root: str, dataset: str, teacher: str, **overrides: object) -> StepsStage:
    keys = STEPS | {"loop.log_every": 2, "loop.checkpoint_every": 3, "cluster.num_workers": 0}
    return load_config(
        StepsStage,
        None,
        keys | {"storage.root": root, "inputs.dataset": dataset, "inputs.teacher": teacher} | overrides,
    )


def weights_of(artifact: Artifact) -> str:
    return hashlib.sha256(read_file(open_folder(artifact.uri), "weights.safetensors", artifact.manifest)).hexdigest()


@pytest.fixture
def dataset(workdir: Path) -> str:
    return make_dataset(str(workdir / "data")).uri


def test_teacher_then_generator_with_lineage_and_record(dataset: str, workdir: Path):
    teacher = train_teacher.run(teacher_config("store", dataset))
    student = distill_steps.run(steps_config("store", dataset, teacher.id))
    assert teacher.manifest["parents"] == {"dataset": "0" * 16}
    assert student.manifest["parents"] == {"dataset": "0" * 16, "teacher": teacher.id}
    tracker = open_tracker(TrackingConfig())
    assert resolve(tracker.client, "presto-generator@candidate", "store").id == student.id
    assert resolve(tracker.client, "presto-teacher", "store").id == teacher.id
    runs = tracker.client.search_runs([tracker.experiment_id], f"tags.`{RUN_ID}` = '{student.id}'")
    assert [r.info.status for r in runs] == ["FINISHED"]
    assert runs[0].data.params["steps.p_gen.kind"] == "karras"
    history = tracker.client.get_metric_history(runs[0].info.run_id, "dsm_loss")
    assert [p.step for p in history] == [2, 4, 6, 8, 10, 12]
    model = open_model(student.uri)
    out = model.denoise(torch.randn(2, 4, 8), torch.ones(2), None)
    assert out.isfinite().all()
    assert (workdir / ".presto/reports" / student.id / "noise.png").is_file()
    assert not (workdir / "store/runs" / student.id).exists()


def test_second_run_uses_the_first_ones_result(dataset: str, capsys):
    first = train_teacher.run(teacher_config("store", dataset))
    made = first.manifest["created"]
    again = train_teacher.run(teacher_config("store", dataset))
    assert again.manifest["created"] == made
    assert "is finished, its result is reused" in capsys.readouterr().err
    versions = open_tracker(TrackingConfig()).client.search_model_versions("name = 'presto-teacher'")
    assert len(versions) == 1


def test_interrupted_run_resumes_and_ends_with_the_same_bits(dataset: str, workdir: Path, monkeypatch):
    whole = train_teacher.run(teacher_config("whole", dataset))
    from presto_core.training.teacher import TeacherTraining

    update, calls = TeacherTraining.update, []

    def update_until_killed(self, batch, *, generator):
        calls.append(self.state.total_step)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return update(self, batch, generator=generator)

    monkeypatch.setattr(TeacherTraining, "update", update_until_killed)
    with pytest.raises(KeyboardInterrupt):
        train_teacher.run(teacher_config("store", dataset))
    resumed = train_teacher.run(teacher_config("store", dataset))
    assert calls == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7]  # from the checkpoint of step 3
    assert weights_of(resumed) == weights_of(whole)
    tracker = open_tracker(TrackingConfig())
    runs = tracker.client.search_runs([tracker.experiment_id], f"tags.`{RUN_ID}` = '{resumed.id}'")
    history = tracker.client.get_metric_history(runs[0].info.run_id, "dsm_loss")
    assert len(runs) == 1
    assert [p.step for p in history] == [2, 4, 6, 8]


@pytest.mark.ray
@pytest.mark.services
def test_ray_worker_with_s3_ends_with_the_bits_of_the_local_run(shared_ray, workdir: Path):
    """Of more rows than one window, which Ray Data reads inside the worker."""
    large: dict[str, Any] = {"shard_rows": (1000,) * 9}
    local = train_teacher.run(teacher_config("store", make_dataset(str(workdir / "data"), **large).uri))
    remote = make_dataset("s3://latents/stage-test/data", **large).uri
    ray = {"cluster.num_workers": 1, "cluster.reader": "ray"}
    there = train_teacher.run(teacher_config("s3://latents/stage-test", remote, **ray))
    assert weights_of(there) == weights_of(local)


def test_one_machine_trains_at_once_and_a_cluster_by_a_worker(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert count_workers(ClusterConfig()) == 0
    assert count_workers(ClusterConfig(num_workers=2)) == 2
    assert count_workers(ClusterConfig(gpus_per_worker=1)) == 1
    assert count_workers(ClusterConfig(address="127.0.0.1:6379")) == 1
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert count_workers(ClusterConfig()) == 1
    assert count_workers(ClusterConfig(num_workers=0)) == 0
    assert count_workers(ClusterConfig(), in_sweep=True) == 0
    assert count_workers(ClusterConfig(num_workers=2), in_sweep=True) == 2


def test_gpus_that_one_process_leaves_idle_are_named():
    assert "cluster.num_workers=4" in describe_idle_gpus(ClusterConfig(), 4)
    assert not describe_idle_gpus(ClusterConfig(), 1)
    assert not describe_idle_gpus(ClusterConfig(num_workers=0), 4)
    assert not describe_idle_gpus(ClusterConfig(device="cpu"), 4)


def test_ray_data_reads_where_there_may_be_other_nodes(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert not uses_ray_reader(ClusterConfig())
    assert uses_ray_reader(ClusterConfig(reader="ray"))
    assert uses_ray_reader(ClusterConfig(address="127.0.0.1:6379"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert uses_ray_reader(ClusterConfig())
    assert not uses_ray_reader(ClusterConfig(reader="threads"))


@pytest.mark.ray
@pytest.mark.services
def test_two_workers_distil(shared_ray, dataset: str):
    two = {"cluster.num_workers": 2, "cluster.cpus_per_worker": 0.7}
    teacher = train_teacher.run(teacher_config("store", dataset))  # here: each group of workers starts for a minute
    student = distill_steps.run(steps_config("store", dataset, teacher.id, **two))
    assert student.manifest["training"] == {"generator_step": 2, "total_step": 12}
    assert weights_of(student) != weights_of(teacher)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.services
def test_divergence_in_a_worker_is_one_message(shared_ray, dataset: str):
    config = teacher_config("store", dataset, **{"cluster.num_workers": 1, "teacher.optim.learning_rate": 1e30})
    with pytest.raises(UserError, match=r"dsm_loss is (nan|inf) on rank 0, .*no checkpoint yet") as caught:
        train_teacher.run(config)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.services
def test_damaged_data_in_a_worker_is_one_message(shared_ray, dataset: str, workdir: Path):
    (workdir / "data/shards/1.parquet").write_bytes(b"nothing")
    config = teacher_config("store", dataset, **{"cluster.num_workers": 1, "cluster.max_failures": 0})
    with pytest.raises(ClusterError, match=r"1\.parquet is damaged"):
        train_teacher.run(config)


@pytest.mark.ray
@pytest.mark.services
def test_running_ray_that_is_too_small_is_refused(shared_ray):
    message = r"needs 9 CPUs and the Ray cluster has 2; lower cluster.num_workers"
    with pytest.raises(ClusterError, match=message), ray_session(ClusterConfig(), cpus=9):
        pass


def test_unanswering_ray_address_is_refused():
    with pytest.raises(ClusterError, match=r"no Ray cluster answers at '127\.0\.0\.1:9'"):
        cluster.check_reachable("127.0.0.1:9")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("presto-teacher@champion", "has no presto-teacher@champion, it has nothing yet"),
        ("0123456789abcdef", r"0123456789abcdef/manifest\.json does not exist"),
        ("somewhere/else", r"manifest\.json does not exist"),
    ],
)
def test_unknown_parent_is_refused(dataset: str, reference: str, message: str):
    with pytest.raises(UserError, match=message):
        distill_steps.run(steps_config("store", dataset, reference))


def test_teacher_of_other_latents_is_refused(dataset: str, workdir: Path):
    teacher = train_teacher.run(teacher_config("store", dataset))
    other = make_dataset(str(workdir / "other"), shape=replace(SHAPE, frames=2 * SHAPE.frames)).uri
    with pytest.raises(
        UserError, match=f"{teacher.id} .*{SHAPE.frames} frames, .* {2 * SHAPE.frames}; .*chunk_frames="
    ):
        distill_steps.run(steps_config("store", other, teacher.id))


def test_tracking_server_that_does_not_answer_is_named(dataset: str):
    config = teacher_config("store", dataset, **{"tracking.uri": "http://user:secret@127.0.0.1:9"})
    with pytest.raises(TrackingError, match=r"MLflow at http://127\.0\.0\.1:9 does not answer") as caught:
        train_teacher.run(config)
    assert "secret" not in str(caught.value)


def test_damaged_shards_are_left_out_where_that_is_allowed(dataset: str, workdir: Path, capsys):
    """Named, counted, remembered by the model; a run that is killed goes on without the same ones."""
    (workdir / "data/shards/1.parquet").write_bytes(b"nothing")
    with pytest.raises(StoreError, match=r"1\.parquet is damaged"):
        train_teacher.run(teacher_config("store", dataset))
    assert "an epoch is 30 rows in 7 batches of 4, 4 per worker" in capsys.readouterr().err
    teacher = train_teacher.run(teacher_config("store", dataset, **{"data.damaged_shards": "skip"}))
    stderr = capsys.readouterr().err
    assert "1 damaged shards are skipped, 7 of 30 rows: shards/1.parquet" in stderr
    assert "an epoch is 23 rows in 5 batches of 4" in stderr
    assert teacher.manifest["skipped_shards"] == ["shards/1.parquet"]


def test_crops_and_dropped_captions_reach_training(dataset: str, workdir: Path):
    whole = train_teacher.run(teacher_config("store", dataset))
    cropped = train_teacher.run(teacher_config("store", dataset, **{"data.crop_frames": 4}))
    dropped = train_teacher.run(teacher_config("store", dataset, **{"teacher.caption_dropout": 0.9}))
    assert len({weights_of(artifact) for artifact in (whole, cropped, dropped)}) == 3
