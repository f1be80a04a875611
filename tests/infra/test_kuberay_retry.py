"""A RayJob's retry beside the attempt before it: it waits for the lease, and reads the settings as they were typed."""

from __future__ import annotations

import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.cli.in_job import decode_settings
from infra.jobs.command import IN_IMAGE, StageCommand
from infra.jobs.kuberay import BASE, render_rayjob
from tests.support.fault_runs import PRESTO, Parents, Training, resume_step, wait_until
from tests.support.processes import PATIENCE_S, Attempt, wait_for
from tests.support.synthetic_dataset import make_dataset

IMAGE = "registry.example/presto@sha256:" + "a" * 64
STEPS = 60


@pytest.fixture
def training(tmp_path: Path, mlflow_database: Path) -> Training:
    """A run whose folder has a name that a shell, or Kubernetes, would expand."""
    dataset = make_dataset(str(tmp_path / "data"), shard_rows=(8,)).uri
    root = str(tmp_path / "$HOME $(PATH) ${X}")
    made = Training("teacher", tmp_path / "run", Parents(dataset), STEPS, settings={"storage.root": root})
    for training in (made, replace(made, cwd=tmp_path / "calm")):
        (training.cwd / ".presto").mkdir(parents=True)
        shutil.copy(mlflow_database, training.cwd / ".presto/mlflow.db")
    return made


def render(training: Training) -> dict[str, Any]:
    submit = training.config.submit.model_copy(update={"image": IMAGE})
    config = training.config.model_copy(update={"submit": submit})
    return render_rayjob(StageCommand(training.command, config), config, "presto-1")


def read_environment(job: dict[str, Any]) -> dict[str, str]:
    environment: dict[str, str] = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    return environment


def start_pod(training: Training, job: dict[str, Any]) -> Attempt:
    """Start what KubeRay's submitter starts: a shell with the entrypoint, in the job's environment."""
    folder = training.cwd / "bin"
    if not folder.exists():  # the image's `python`; it prints a line per step here
        folder.mkdir()
        program = PRESTO[1].replace("from infra.cli import main as cli;", "from infra.cli import in_job as cli;")
        (folder / "python").write_text(f"#!/bin/sh\nshift 2\nexec {sys.executable} -c '{program}' \"$@\"\n")
        (folder / "python").chmod(0o755)
    path = {"PATH": f"{folder}:/usr/bin:/bin", "PYTHONPATH": ":".join(filter(None, sys.path))}
    attempt = Attempt(["sh", "-c", f"exec {job['spec']['entrypoint']}"], training.cwd, read_environment(job) | path)
    training.attempts.append(attempt)
    return attempt


def test_every_rayjob_is_retried_and_waits_for_its_run(training: Training):
    base, job = yaml.safe_load(BASE.read_text()), render(training)
    assert "cluster.wait_for_run=true" in base["spec"]["entrypoint"].split()
    assert not training.config.cluster.wait_for_run
    settings = yaml.safe_load(decode_settings(read_environment(job)[IN_IMAGE]))
    assert settings["cluster"]["wait_for_run"] is True
    assert base["spec"]["backoffLimit"] == job["spec"]["backoffLimit"] > 0


@pytest.mark.entry
# over 10 s: two processes import everything, and train
def test_a_retry_beside_the_attempt_before_it_waits_and_resumes(training: Training):
    job = render(training)
    first = start_pod(training, job)
    try:
        assert wait_until(first, 20), first.stderr
        first.process.send_signal(signal.SIGSTOP)  # as a pod whose last upload takes long
        retry = start_pod(training, job)
        assert wait_for(lambda: "waiting for process" in retry.stderr or not retry.is_running, PATIENCE_S)
        assert retry.is_running, retry.stderr
        first.kill()
        assert retry.exit_code() == 0, retry.stderr
    finally:
        for attempt in training.attempts:
            attempt.end(patience_s=0)
    assert 0 < resume_step(retry) < STEPS
    (run,) = Path(training.root).glob("artifacts/*")
    found = training.outcome()
    calm = replace(training, cwd=training.cwd.with_name("calm"), settings={}, attempts=[])
    calm.finish_in_process()
    assert found == calm.outcome()
    assert run.name in retry.stderr
