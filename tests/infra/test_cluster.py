"""The whole flow as jobs on a cluster of three nodes, one of which is lost during training (`make test-cluster`)."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import mlflow
import pytest

from pipelines.storage.filesystem import open_folder
from pipelines.storage.local_s3 import Server
from presto_core.artifacts.manifest import run_folder
from tests.e2e.test_flow import TINY
from tests.infra.conftest import PRESTO, NodeSecrets
from tests.servers.ray_cluster import RayCluster, make_user_environment
from tests.support.processes import PATIENCE_S, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.services, pytest.mark.timeout(3600)]
PAGE = "CLUSTER_PAGE"  # environment variable with the path of the transcript
ROOT = "s3://latents/cluster"
STEPS = 1500
CLUSTER = (
    "cluster.num_workers=1",
    "cluster.data_workers=1",
    "cluster.cpus_per_worker=0.8",
    "cluster.max_failures=8",
    f"teacher.steps={STEPS}",
    "loop.checkpoint_every=20",
)
HEADING = """# The whole flow as jobs

Written by `make test-cluster`: a Ray head and two worker nodes as processes of their own on one machine, with a token;
an S3 and an MLflow server; and a user of another home and folder, whose environment holds nothing of the nodes'. One
node is lost in training. Paths, ports and ids are neutral here, Ray's own diagnostics are left out, and the rest is as
it was printed.

```console
"""


RAYS_OWN = re.compile(r"core_worker\.cc|\(raylet\)|state-dump|job_manager\.py|^\s+\(\d\) ")


@dataclass
class Transcript:
    """What a user typed and saw; `hidden` maps local paths to neutral ones, and `secrets` must never appear."""

    home: Path
    environment: dict[str, str]
    hidden: dict[str, str]
    secrets: list[str]
    lines: list[str] = field(default_factory=list)

    def presto(self, *args: str) -> subprocess.Popen[str]:
        self.lines.append("$ presto " + " ".join(f"'{w}'" if set(w) & set(" [{") else w for w in args))
        return subprocess.Popen(
            [*PRESTO, *args],
            cwd=self.home,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, view: subprocess.Popen[str]) -> str:
        output, _ = view.communicate(timeout=PATIENCE_S)
        self.lines += [*(line.rstrip() for line in output.splitlines() if not RAYS_OWN.search(line)), ""]
        assert view.returncode == 0, output
        assert not [secret for secret in self.secrets if secret in output]
        return output

    def note(self, what: str) -> None:
        self.lines.append(f"# {what}")

    def write(self, page: Path) -> None:
        text = "\n".join(self.lines)
        for mine, neutral in self.hidden.items():
            text = text.replace(mine, neutral)
        numbers: dict[str, str] = {}
        text = re.sub(
            r"\b[0-9a-f]{16}\b|(?<=-)[0-9a-f]{8}\b",
            lambda m: numbers.setdefault(m[0], str(len(numbers)).zfill(len(m[0]))),
            text,
        )
        text = re.sub(r"127\.0\.0\.1:\d+", "head:8265", text)
        text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+", "…", text)
        page.write_text(HEADING + text + "\n```\n")


def test_the_whole_flow_as_jobs_of_a_stranger_with_a_node_lost_in_training(
    node_secrets: NodeSecrets, object_store: Server, mlflow_server: str, tmp_path: Path
):
    home, shared = tmp_path / "stranger", tmp_path / "shared"
    with RayCluster(tmp_path / "plane", cpus=(1, 1), environment=node_secrets.environment()) as plane:
        environment = make_user_environment(
            home,
            RAY_AUTH_TOKEN=plane.token,
            RAY_API_SERVER_ADDRESS=plane.url,
            MLFLOW_TRACKING_URI=mlflow_server,
            **object_store.environment(),
        )
        secrets = [value for name, value in environment.items() if "SECRET" in name or "TOKEN" in name]
        user = Transcript(home, environment, {str(shared): "/mnt/music", str(tmp_path): "/home/me"}, secrets)

        def run_job(*args: str, only: tuple[str, ...]) -> str:
            """Run a command to its end, with those settings that its stage reads."""
            return user.finish(start_job(*args, only=only))

        def start_job(*args: str, only: tuple[str, ...]) -> subprocess.Popen[str]:
            settings = dict(setting.split("=", 1) for setting in (*TINY, *CLUSTER))
            mine = [f"{key}={value}" for key, value in settings.items() if key.startswith(only)]
            return user.presto(*args, f"storage.root={ROOT}", *mine, "--on", plane.url)

        mounted = f"submit.shared_folders=[{shared}]"
        run_job("corpus", "build", "from_scratch", f"corpus.folder={shared}/corpus", mounted, only=("corpus.",))
        run_job("ingest", "from_scratch", f"ingest.source={shared}/corpus", mounted, only=("cluster.",))
        training = ("network.", "teacher.", "loop.", "cluster.")
        teacher = start_job("train-teacher", "from_scratch", only=training)
        number = kill_training_node(plane, teacher)
        user.note(f"node {number} is killed while it trains")
        output = user.finish(teacher)
        assert re.findall(r"resumed at step [1-9]", output), output
        run_job("distill-layers", "from_scratch", only=("layers.", "loop.", "cluster."))
        run_job(
            "distill-steps",
            "from_scratch",
            "--from",
            "presto-generator@candidate-l",
            only=("steps.", "loop.", "cluster."),
        )
        run_job("evaluate", "from_scratch", only=("evaluate.", "cluster."))
        # health and quality cannot be measured after a few steps of training
        first = ("promote.require_health=false", "--accept-worse", "--why", "the first one")
        user.finish(user.presto("registry", "promote", "candidate-ls", f"storage.root={ROOT}", *first))
        user.finish(user.presto("jobs", "list"))
    client = mlflow.MlflowClient(tracking_uri=mlflow_server)
    version = client.get_model_version_by_alias("presto-generator", "champion")
    assert version.tags["presto.artifact_uri"].startswith(ROOT)
    check_each_step_once(client)
    if page := os.environ.get(PAGE):
        user.write(Path(page))


def kill_training_node(plane: RayCluster, view: subprocess.Popen[str]) -> int:
    """Kill the node that trains, once there is a checkpoint to resume from; return its number."""
    runs = open_folder(ROOT).child("runs")

    def has_checkpoint() -> bool:
        return any(
            run_folder(open_folder(ROOT), run).child("checkpoints").list_folders() for run in runs.list_folders()
        )

    assert wait_for(lambda: has_checkpoint() or view.poll() is not None, PATIENCE_S, step_s=0.2)
    (number,) = [number for number in (1, 2) if plane.has_training_worker(number)]
    plane.lose_node(number)
    return number


def check_each_step_once(client: mlflow.MlflowClient) -> None:
    """Check that each step is recorded once, though an orphaned worker ran beside its replacement."""
    (run,) = client.search_runs(
        [client.get_experiment_by_name("presto").experiment_id],
        f"tags.`presto.stage` = 'train-teacher' and params.`teacher.steps` = '{STEPS}'",
    )
    assert run.info.status == "FINISHED"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "dsm_loss")]
    assert steps == sorted(set(steps))
    assert steps[-1] == STEPS
