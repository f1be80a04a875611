"""Jobs on a real cluster: sent, followed through lost connections, detached, stopped, resumed, and rejected."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.storage.filesystem import open_folder
from pipelines.storage.local_s3 import find_free_ports
from presto_core.artifacts.manifest import run_folder
from tests.infra.conftest import PRESTO, NodeSecrets, User
from tests.servers.ray_cluster import RayCluster
from tests.servers.relay import Relay
from tests.support.processes import PATIENCE_S, Attempt, wait_for
from tests.support.synthetic_dataset import make_dataset

pytestmark = [pytest.mark.ray, pytest.mark.services, pytest.mark.timeout(2000)]
ROOT = "s3://latents/jobs"
LINES, CUTS, STATUS = 40, 3, 7  # lines between two cuts
QUIET = "echo begun; sleep 3000"


@pytest.fixture(scope="session")
def dataset(object_store: object) -> str:
    return make_dataset(f"{ROOT}/data").uri


def training_args(dataset: str, **more: object) -> list[str]:
    """Arguments of a small training in the job's own process."""
    settings = {
        "storage.root": ROOT,
        "inputs.dataset": dataset,
        "network.dim": 16,
        "network.depth": 2,
        "network.heads": 2,
        "teacher.global_batch_size": 4,
        "cluster.num_workers": 0,
    }
    return ["train-teacher", *(f"{key}={value}" for key, value in (settings | more).items())]


def send_job(plane: RayCluster, entrypoint: str, job_id: str) -> str:
    """Send a job without Presto; `presto jobs` supports it too."""
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(plane.url, headers={"Authorization": f"Bearer {plane.token}"})
    return str(client.submit_job(entrypoint=entrypoint, submission_id=job_id))


# over 10 s: starts the cluster, and six commands and two jobs as processes that import torch
def test_a_job_is_stopped_with_its_state_and_the_same_command_resumes_it(user: User, plane: RayCluster, dataset: str):
    args = [*training_args(dataset, **{"teacher.steps": 10**7, "loop.checkpoint_every": 50}), "--on", user.url]
    first = user.presto(*args, "submit.follow=false")
    job_id, run_id = ids_in(first)
    run = run_folder(open_folder(ROOT), run_id).child("checkpoints")
    assert wait_for(lambda: run.list_folders() or plane.has_ended(job_id), PATIENCE_S, step_s=0.5), log_of(user, job_id)

    second = user.presto(*args)
    assert second.returncode == 1
    assert f"job {job_id}" in second.stderr
    assert f"run {run_id}" in second.stderr

    stopped = user.presto("jobs", "stop", run_id)
    assert stopped.returncode == 0, stopped.stderr
    assert f"job {job_id}: STOPPED" in stopped.stderr
    assert "its state is saved, re-run the command to resume" in log_of(user, job_id)

    again = user.presto(*args, "submit.follow=false")
    assert ids_in(again)[1] == run_id
    log = f"/api/jobs/{ids_in(again)[0]}/logs"
    assert wait_for(
        lambda: "resumed at step" in plane.get(log) or plane.has_ended(ids_in(again)[0]), PATIENCE_S, step_s=0.5
    )
    assert "resumed at step" in plane.get(log)
    assert user.presto("jobs", "stop", run_id, "--no-wait").returncode == 0
    listed = {row["job"]: row for row in user.list_jobs()}
    assert listed[job_id]["run"] == run_id
    assert listed[job_id]["stage"] == "train-teacher"

    shown = plane.get("/api/jobs/") + plane.get(log) + first.stderr + again.stderr
    for name, secret in user.environment.items():
        if name.endswith(("SECRET_ACCESS_KEY", "AUTH_TOKEN")):
            assert secret not in shown, f"{name} is shown"


# over 10 s: three commands, and waits before connecting again after each of three cuts
@pytest.mark.slow
def test_a_log_is_whole_though_the_connection_is_cut_again_and_again(user: User, plane: RayCluster, tmp_path: Path):
    job_id = send_job(plane, make_printing_command(tmp_path), "talkative")
    with Relay(plane.dashboard) as relay:
        command = [*PRESTO, "jobs", "logs", "-f", job_id, "--on", f"http://127.0.0.1:{relay.port}"]
        view = subprocess.Popen(
            command, cwd=user.home, env=user.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        got = []
        with view:
            for line in view.stdout or ():
                got.append(line)
                if line.startswith("part "):
                    assert wait_for(relay.cut, PATIENCE_S)  # it may be between two connections at this moment
                    (tmp_path / f"go-{line.split()[1]}").touch()
    parts = [[f"line {i}\n" for i in range(LINES)] + [f"part {part} ends\n"] for part in range(CUTS)]
    assert [line for line in got if line.startswith(("line ", "part "))] == [*sum(parts, []), "line last\n"]
    assert view.returncode == STATUS
    assert user.presto("jobs", "wait", job_id).returncode == STATUS
    assert user.presto("jobs", "logs", job_id).stdout.endswith("line last\n")


def make_printing_command(folder: Path) -> str:
    """Return a job that prints in parts, and waits for a file before each next part."""
    part = f"i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); done; echo part %d ends; "
    wait = f"while [ ! -e {folder}/go-%d ]; do sleep 0.1; done; "
    return "".join(part % n + wait % n for n in range(CUTS)) + f"echo line last; exit {STATUS}"


# over 10 s: four commands, one of which waits until a job has stopped
@pytest.mark.slow
def test_ctrl_c_asks_whether_to_stop_the_job_or_only_the_view(
    user: User, plane: RayCluster, begin: Callable[..., Attempt]
):
    job_id = send_job(plane, QUIET, "quiet")
    command = [*PRESTO, "jobs", "logs", "-f", job_id]

    def interrupt_and_answer(answer: bytes) -> Attempt:
        attempt = begin(command, user.home, user.environment, keep_stdin=True)
        assert wait_for(lambda: "waiting for job" in attempt.stderr or not attempt.is_running, PATIENCE_S)
        attempt.process.send_signal(signal.SIGINT)
        assert wait_for(lambda: "stop the job too?" in attempt.stderr or not attempt.is_running, PATIENCE_S)
        assert attempt.is_running, attempt.stderr
        attempt.process.stdin.write(answer)
        attempt.process.stdin.flush()
        attempt.process.wait(PATIENCE_S)
        return attempt

    left = interrupt_and_answer(b"v\n")
    assert left.process.returncode == 130, left.stderr
    assert "presto jobs logs -f quiet" in left.stderr
    status = json.loads(user.presto("jobs", "status", job_id, "--json").stdout)
    assert status["status"] == "RUNNING"
    assert user.presto("jobs", "wait", job_id, "--timeout", "1").returncode == 124
    ended = interrupt_and_answer(b"s\n")
    assert ended.process.returncode == 143, ended.stderr
    assert "STOPPED" in ended.stderr


# over 10 s: sends a job, whose process imports torch before it looks for secrets
@pytest.mark.slow
def test_a_missing_secret_of_the_nodes_is_one_message(user: User, node_secrets: NodeSecrets, dataset: str):
    node_secrets.remove()
    try:
        done = user.presto(*training_args(dataset, seed=5), "--on", user.url)
    finally:
        node_secrets.install()
    assert done.returncode == 1
    assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize(
    ("more", "environment", "message"),
    [
        ({}, {"RAY_AUTH_TOKEN": "f" * 64}, "RAY_AUTH_TOKEN"),
        ({}, {"RAY_AUTH_TOKEN": ""}, "RAY_AUTH_TOKEN"),
        (
            {"cluster.num_workers": 2, "cluster.gpus_per_worker": 1},
            {},
            "2 GPUs",
        ),
        ({"inputs.dataset": "no-such@candidate"}, {}, "no-such@candidate"),
        ({"inputs.dataset": "no-such@candidate"}, {"MLFLOW_TRACKING_URI": "sqlite:///x.db"}, "sqlite:///x.db"),
    ],
)
def test_what_cannot_work_is_refused_in_one_message_before_anything_is_sent(
    user: User, plane: RayCluster, dataset: str, more: dict[str, object], environment: dict[str, str], message: str
):
    before = plane.get("/api/jobs/").count("submission_id")
    done = user.presto(*training_args(dataset, **more), "--on", user.url, **environment)
    assert done.returncode == 1, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("presto: ") == 1
    assert plane.get("/api/jobs/").count("submission_id") == before


def test_a_cluster_that_takes_jobs_from_anyone_gets_none(user: User, tmp_path: Path):
    remote_settings = ["storage.root=s3://bucket/x", "tracking.uri=https://mlflow.example"]
    with RayCluster(tmp_path, cpus=(), environment={}, closed=False) as plane:
        address = f"http://0.0.0.0:{plane.dashboard}"  # not a loopback address, though it leads to this machine
        done = user.presto(
            "train-teacher", "demo", *remote_settings, "--on", address, AWS_ENDPOINT_URL="https://s3.example"
        )
        jobs = plane.get("/api/jobs/")
    assert done.returncode == 1
    assert address in done.stderr
    assert "submit.allow_open_dashboard" in done.stderr
    assert json.loads(jobs) == []


def test_a_dead_head_and_an_unknown_job_are_named(user: User):
    (port,) = find_free_ports(1)
    dead = user.presto("jobs", "list", "--on", f"http://127.0.0.1:{port}")
    assert dead.returncode == 1
    assert f"http://127.0.0.1:{port} (Connection refused)" in dead.stderr
    unknown = user.presto("jobs", "logs", "nothing")
    assert unknown.returncode == 1
    assert f"job nothing at {user.url}" in unknown.stderr


def ids_in(sent: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """Return the ids of the job and its run, as printed when it is sent."""
    assert sent.returncode == 0, sent.stderr
    found: list[tuple[str, str]] = re.findall(r"job (\S+), run ([0-9a-f]{16}), sent to", sent.stderr)
    return found[0]


def log_of(user: User, job_id: str) -> str:
    return user.presto("jobs", "logs", job_id).stdout
