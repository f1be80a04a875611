"""A worker group that loses a node goes on with fewer workers, the same global batch and so the same result."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from ray.train import ScalingConfig
from safetensors.torch import load

from pipelines.stages import train_teacher
from pipelines.storage.filesystem import open_folder
from pipelines.tracking.client import open_tracker
from pipelines.tracking.tags import RUN_ID
from pipelines.train.elastic import EvenSharesPolicy
from presto_core.artifacts.manifest import Artifact, artifact_folder, read_artifact, run_folder
from presto_core.artifacts.store import read_file
from presto_core.config.loader import flatten
from presto_core.config.schema import TeacherStage
from presto_core.config.sections import TrackingConfig
from tests.pipelines.test_training_stages import teacher_config
from tests.servers.local_cluster import local_cluster
from tests.support.synthetic_dataset import make_dataset

STEPS = 200
SETTINGS = {
    "teacher.steps": STEPS,
    "teacher.global_batch_size": 24,
    "network.dim": 64,
    "network.depth": 4,
    "loop.checkpoint_every": 5,
}
PATIENCE_S = 500
FP32 = 1e-4  # of a tensor's largest number, after all steps; 1e-6 is measured


@pytest.mark.parametrize(
    ("nodes", "workers"),
    [([6.4], 8), ([6.3], 4), ([1.6, 1.6, 2.4], 4), ([0.8, 0.8], 2), ([0.7, 0.7], 0), ([7.2], 8), ([2.4], 2), ([], 0)],
)
def test_a_group_is_as_large_as_its_room_and_the_global_batch_allow(nodes: list[float], workers: int):
    scaling = ScalingConfig(num_workers=(2, 9), resources_per_worker={"CPU": 0.8})
    policy = EvenSharesPolicy(scaling, global_batch_size=16)
    reserved = {str(i): {"CPU": cpus, "memory": 1e9} for i, cpus in enumerate(nodes)}
    assert policy._count_possible_workers(reserved) == workers


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.ray
def test_training_continues_where_a_node_is_lost_and_ends_with_the_same_weights(workdir: Path):
    dataset = make_dataset(str(workdir / "data"), shard_rows=(40, 30, 26)).uri
    local = train_teacher.run(teacher_config("here", dataset, **SETTINGS))
    with local_cluster(2, workdir) as (cluster, environment):
        keys = {"cluster.num_workers": 2, "cluster.min_workers": 1, "cluster.address": cluster.address}
        config = teacher_config("store", dataset, **SETTINGS, **keys, **{"cluster.reader": "threads"})
        with training(config, environment, workdir / "run.log") as run:
            wait_for_checkpoint(config, step=20, run=run)
            cluster.lose_a_node()
            run.wait(timeout=PATIENCE_S)
    assert run.returncode == 0, (workdir / "run.log").read_text()
    there = read_artifact(artifact_folder(open_folder("store"), local.id))
    assert there.id == local.id
    group_sizes = history(there, "workers")
    assert group_sizes[0] == 2, "both workers trained at first"
    assert group_sizes[-1] == 1, "one goes on"
    assert difference(weights(local), weights(there)) < FP32


@contextmanager
def training(config: TeacherStage, environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command that trains, in a process of its own."""
    changed, plain = (flatten(c.model_dump(mode="json")) for c in (config, TeacherStage()))
    settings = [f"{k}={v}" for k, v in changed.items() if v != plain[k]]
    command = [sys.executable, "-m", "infra.cli.main", "train-teacher", *settings]
    with log.open("w") as file:
        run = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        try:
            yield run
        finally:
            run.kill()
            run.wait()


def wait_for_checkpoint(config: TeacherStage, *, step: int, run: subprocess.Popen[bytes]) -> None:
    """Until a step has been saved."""
    folder = run_folder(open_folder("store"), config.run_id({"dataset": "0" * 16})).child("checkpoints")
    until = time.monotonic() + PATIENCE_S
    while not any(name >= f"step-{step:09d}" for name in folder.list_folders()):
        assert run.poll() is None, "the run ended before it had saved anything; see run.log"
        assert time.monotonic() < until, "the run saved nothing; see run.log"
        time.sleep(0.05)


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load(read_file(open_folder(artifact.uri), "weights.safetensors", artifact.manifest))


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[k] - b[k]).abs().max() / a[k].abs().max()) for k in a)


def history(artifact: Artifact, metric: str) -> list[float]:
    tracker = open_tracker(TrackingConfig())
    runs = tracker.client.search_runs([tracker.experiment_id], f"tags.`{RUN_ID}` = '{artifact.id}'")
    found = [p for run in runs for p in tracker.client.get_metric_history(run.info.run_id, metric)]
    return [p.value for p in sorted(found, key=lambda p: p.step)]
