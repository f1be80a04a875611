"""Faults that befall training on Ray workers, their nodes and the servers they need (`make test-chaos`)."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pipelines.cluster.ray_environment import ENVIRONMENT
from pipelines.storage.filesystem import open_folder
from pipelines.storage.local_s3 import Server
from tests.servers.fault_proxy import FaultProxy
from tests.servers.ray_cluster import RayCluster
from tests.support.fault_runs import (
    COMMANDS,
    SAME,
    TABLE,
    FaultRow,
    Parents,
    Training,
    count_lost_steps,
    resume_step,
    wait_until,
)
from tests.support.processes import PATIENCE_S, Attempt, title_of, wait_for
from tests.support.synthetic_dataset import make_dataset

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.services,
    pytest.mark.timeout(6000),
]
STEPS = 1000  # some twenty seconds of them: a kill must not come after the last
KILLS = 7  # a run; eight kinds of run make 56
OUTAGE_S = 30
WORKER = "RayTrainWorker"


def kill_worker(attempt: Attempt, rng: random.Random) -> bool:
    """kill -9 of one training worker; False where the life ended before there was one."""
    wait_for(lambda: not attempt.is_running or attempt.workers(WORKER), PATIENCE_S)
    workers = [worker for worker, _ in attempt.workers(WORKER)]
    if not attempt.is_running or not workers:
        return False
    rng.choice(workers).kill()
    return True


def survive(begin, run: Training, rng: random.Random) -> list[str]:
    """Kill drivers and workers at random steps, each time going on with the same command; who was killed."""
    attempt, hits = run.begin(begin), list[str]()
    for step in sorted(rng.sample(range(2, STEPS - 20), KILLS)):
        victim = rng.choice(("driver", "worker"))
        if not attempt.is_running:
            attempt.exit_code()
            attempt = run.begin(begin)
        if not wait_until(attempt, step):
            continue
        if victim == "worker" and kill_worker(attempt, rng):
            hits.append(victim)
        elif victim == "driver":
            attempt.kill()
            hits.append(victim)
            if rng.random() < 0.5:  # else the next life meets what this one left behind
                attempt.end()
            attempt = run.begin(begin)
    if attempt.exit_code():
        assert run.begin(begin).exit_code() == 0, run.attempts[-1].stderr
    return hits


def run_undisturbed(begin, run: Training) -> Training:
    """The same run, which nothing befalls; one worker's bits are those of the loop in this process."""
    calm = replace(run, cwd=run.cwd.with_name("calm"), settings={}, environment={}, attempts=[])
    if run.workers == 2:
        assert calm.begin(begin).exit_code() == 0, calm.attempts[-1].stderr
    else:
        replace(calm, workers=0).finish_in_process()
    return calm


HITS: list[str] = []


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("stage", COMMANDS)
def test_kills_at_random_steps(begin, tmp_path: Path, parents: Parents, stage: str, workers: int):
    run = Training(stage, tmp_path / "run", parents, steps=STEPS, workers=workers)
    calm = run_undisturbed(begin, run)
    hits = survive(begin, run, random.Random(f"{stage} {workers}"))
    assert run.outcome() == calm.outcome()
    HITS.extend(hits)
    for victim in sorted(set(hits)):
        kills = hits.count(victim)
        TABLE.append(
            FaultRow(f"{victim} SIGKILL at random steps", stage, workers, kills, count_lost_steps(*run.attempts), SAME)
        )


def test_there_were_fifty_random_kills_of_both_kinds():
    if len(HITS) < len(COMMANDS) * 2 * KILLS // 2:
        pytest.skip("needs the kills of all stages")
    assert len(HITS) >= 50
    assert set(HITS) == {"driver", "worker"}


def test_sigterm_of_one_worker_saves_on_all_and_ends(begin, tmp_path: Path, parents: Parents):
    run = Training("S", tmp_path / "run", parents, steps=STEPS, workers=2)
    calm = run_undisturbed(begin, run)
    attempt = run.begin(begin)
    assert wait_until(attempt, 10)
    worker, _ = attempt.workers(WORKER)[-1]
    worker.send_signal(signal.SIGTERM)
    assert attempt.exit_code() == 1
    assert "its state is saved, re-run the command to resume" in attempt.stderr
    again = run.begin(begin)
    assert again.exit_code() == 0
    assert 0 < resume_step(again) < STEPS
    assert count_lost_steps(attempt, again) == 0
    assert run.outcome() == calm.outcome()
    TABLE.append(FaultRow("SIGTERM of one worker", "S", 2, 1, 0, f"saved, exit status 1; then {SAME}"))


def test_nan_on_one_rank_stops_both(begin, tmp_path: Path, parents: Parents):
    poisoned = Parents(make_dataset(str(tmp_path / "poisoned"), poisoned_row=3).uri)
    run = Training("teacher", tmp_path / "run", poisoned, workers=2, settings={"loop.checkpoint_every": 1})
    attempt = run.begin(begin)
    assert attempt.exit_code() == 1
    good = run.checkpoints()[-1]
    assert f"step {good};" in attempt.stderr
    assert f"on rank {int('on rank 1' in attempt.stderr)}, " in attempt.stderr
    assert attempt.stderr.count("resumed") == 0  # no restart would help
    assert run.weights_are_finite()
    TABLE.append(
        FaultRow("NaN on one rank", "teacher", 2, 1, 1, "loss, step, noise levels, rank, last checkpoint named")
    )


# --- servers


def test_object_store_down_for_half_a_minute(begin, tmp_path: Path, parents: Parents, object_store: Server):
    with FaultProxy(object_store.endpoint) as proxy:
        root, through = "s3://latents/chaos", {"AWS_ENDPOINT_URL": proxy.endpoint}
        open_folder(root).delete()
        settings = {"storage.root": root}
        run = Training("teacher", tmp_path / "run", parents, 600, 1, settings=settings, environment=through)
        calm = run_undisturbed(begin, run)
        attempt = run.begin(begin)
        assert wait_until(attempt, 30)
        with proxy.down():
            time.sleep(OUTAGE_S)
        assert attempt.exit_code() == 0, attempt.stderr
    assert run.outcome() == calm.outcome()
    TABLE.append(FaultRow(f"object store down for {OUTAGE_S} s", "teacher", 1, 1, 0, f"the run waited; {SAME}"))


def test_mlflow_down_for_half_a_minute(begin, tmp_path: Path, parents: Parents, mlflow_server: str):
    with FaultProxy(mlflow_server) as proxy:
        run = Training("teacher", tmp_path / "run", parents, 600, settings={"tracking.uri": proxy.endpoint})
        calm = run_undisturbed(begin, run)
        attempt = run.begin(begin)
        assert wait_until(attempt, 30)
        with proxy.down():
            time.sleep(OUTAGE_S)
        assert attempt.exit_code() == 0, attempt.stderr
        assert run.outcome() == calm.outcome()
    TABLE.append(FaultRow(f"MLflow down for {OUTAGE_S} s", "teacher", 0, 1, 0, f"rows buffered and sent later; {SAME}"))


# --- nodes

CLUSTER = """
import json, sys
from ray.cluster_utils import Cluster

memory = {"object_store_memory": 100 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory})
nodes = [cluster.add_node(num_cpus=1, **memory) for _ in range(2)]
raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
sys.stdin.read()
"""
FAST = {f"RAY_health_check_{name}_ms": "1000" for name in ("initial_delay", "period", "timeout")}


def test_node_killed_in_a_cluster(begin, tmp_path: Path, parents: Parents):
    (tmp_path / "cluster").mkdir()
    shared = {**ENVIRONMENT, **FAST, "RAY_health_check_failure_threshold": "3", "RAY_AUTH_MODE": "token"}
    shared |= {"RAY_AUTH_TOKEN": "5" * 64, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}
    cluster = begin([sys.executable, "-c", CLUSTER], tmp_path / "cluster", shared, keep_stdin=True)
    assert wait_for(lambda: cluster.stdout.strip() or not cluster.is_running, PATIENCE_S), cluster.stderr
    known = json.loads(cluster.stdout)
    joined = {"cluster.address": known["address"]}
    run = Training("teacher", tmp_path / "run", parents, STEPS, 1, settings=joined, environment=shared)
    calm = run_undisturbed(begin, run)
    attempt = run.begin(begin)
    assert wait_until(attempt, 20)
    (raylet,) = [pid for pid in known["raylets"] if hosts_worker(pid)]
    psutil.Process(raylet).kill()
    assert attempt.exit_code() == 0, attempt.stderr
    assert 0 < resume_step(attempt) < STEPS
    assert run.outcome() == calm.outcome()
    TABLE.append(
        FaultRow(
            "node (raylet) SIGKILL", "teacher", 1, 1, count_lost_steps(attempt), f"restarted on another node; {SAME}"
        )
    )


def hosts_worker(raylet: int) -> bool:
    return any(WORKER in title_of(child) for child in psutil.Process(raylet).children(recursive=True))


def test_head_lost_and_back(begin, tmp_path: Path, parents: Parents):
    """The head goes with all of its cluster, and is back later at its address: the same process goes on."""
    code = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with RayCluster(tmp_path / "cluster", cpus=(1.0,), environment=code) as cluster:
        shared = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token}
        joined = {"cluster.address": f"127.0.0.1:{cluster.gcs}", "cluster.wait_for_run": True}
        run = Training("teacher", tmp_path / "run", parents, STEPS, 1, settings=joined, environment=shared)
        calm = run_undisturbed(begin, run)
        attempt = run.begin(begin)
        assert wait_until(attempt, 20)
        cluster.lose_all_nodes()
        assert wait_for(lambda: "waiting for the head" in attempt.stderr or not attempt.is_running, PATIENCE_S)
        assert attempt.is_running, attempt.stderr
        cluster.start()
        assert attempt.exit_code() == 0, attempt.stderr
    assert 0 < resume_step(attempt) < STEPS
    assert run.outcome() == calm.outcome()
    TABLE.append(
        FaultRow(
            "Ray head lost, and back", "teacher", 1, 1, count_lost_steps(attempt), f"waited for with `--wait`; {SAME}"
        )
    )
