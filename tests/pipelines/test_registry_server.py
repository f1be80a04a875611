"""A team's registry: an MLflow server with PostgreSQL and S3, and many concurrent writers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from typer.testing import CliRunner

from infra.cli.main import app
from pipelines.registry.names import CANDIDATE, CHAMPION
from pipelines.registry.promotion import Promoter
from pipelines.registry.promotion_log import PromotionLog
from pipelines.registry.publish import open_promotion_log_folder
from pipelines.stages import train_teacher
from pipelines.storage.filesystem import open_folder
from pipelines.storage.local_s3 import Server, find_free_ports
from pipelines.tracking import run as tracking_run
from pipelines.tracking.client import open_tracker
from pipelines.tracking.tags import RUN_ID
from presto_core.artifacts.manifest_schema import content_hash
from presto_core.config.promotion import PromoteConfig
from presto_core.config.sections import TrackingConfig
from presto_core.training.teacher import TeacherTraining
from tests.pipelines.test_serving import make_playable_registry
from tests.pipelines.test_training_stages import teacher_config
from tests.servers.fault_proxy import Fault, FaultProxy
from tests.servers.mlflow_server import MlflowServer
from tests.servers.postgres import Postgres, new_postgres
from tests.support.processes import wait_for
from tests.support.tiny_registry import TinyRegistry, files_below, make_tiny_registry, presto
from tests.support.warm_commands import run_presto

pytestmark = [pytest.mark.services, pytest.mark.slow]
PATIENCE_S = 300
LOOSE = ("promote.require_health=false", "promote.interval_groups=5")


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    server = new_postgres()
    yield server
    server.remove()


@pytest.fixture(scope="module")
def team(
    postgres: Postgres, object_store: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[MlflowServer, TinyRegistry]]:
    """A server whose clients know only its address, and a tiny registry on it, with artifacts on S3."""
    folder, before = tmp_path_factory.mktemp("team"), Path.cwd()
    server = MlflowServer(
        folder,
        postgres.uri("mlflow"),
        "s3://latents/mlflow",
        environment={"MLFLOW_S3_ENDPOINT_URL": object_store.endpoint},
    )
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.uri)
        os.chdir(folder)
        home = make_tiny_registry("s3://latents/registry")
        os.chdir(before)
        yield server, home
    server.kill()


@pytest.fixture(autouse=True)
def _in_team_folder(team: tuple[MlflowServer, TinyRegistry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", team[0].uri)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("args", [("list",), ("search", "fd < 3"), ("show", "candidate-s")])
def test_a_server_lost_after_the_first_answer(
    team: tuple[MlflowServer, TinyRegistry], tmp_path: Path, args: tuple[str, ...]
):
    server, home = team
    with FaultProxy(server.uri) as proxy:
        for lost in ("registered-models/", "model-versions/", "/runs/"):
            proxy.plan(Fault.REFUSE, path=lost)
        environment = os.environ | {"MLFLOW_TRACKING_URI": proxy.endpoint, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
        command = ["registry", *args, f"storage.root={home.root}"]
        done = run_presto(command, env=environment, cwd=tmp_path, timeout_s=300)
    assert proxy.injected[Fault.REFUSE]
    assert done.returncode == 1
    stderr = " ".join(done.stderr.split())
    assert "MLflow stopped answering" in stderr
    assert "re-run the same command" in stderr
    assert "Traceback" not in stderr


def test_all_commands(team: tuple[MlflowServer, TinyRegistry], tmp_path: Path):
    _, home = team
    home.add_report(home.made["S"], home.made["LS"], worse=(0.6, 0.4))
    assert {v["name"] for v in json.loads(presto(home, "list", "--json"))} == {
        *("presto-dataset", "presto-teacher", "presto-generator", "presto-report")
    }
    found = json.loads(presto(home, "search", f"fd < 3 and parent = {home.made['base'].id}", "--json"))
    assert [v["method"] for v in found] == ["LS", "S"]
    shown = json.loads(presto(home, "show", "candidate-ls", "--json"))
    assert shown["uri"].startswith("s3://latents/registry/artifacts/")
    assert len(json.loads(presto(home, "lineage", "candidate-ls", "--json"))["edges"]) == 6
    assert json.loads(presto(home, "diff", "candidate-s", "candidate-ls", "--json"))["version"]["method"] == ["S", "LS"]
    for of in ("S", "LS"):
        presto(home, "promote", f"candidate-{of.lower()}", *LOOSE, "--why", f"{of} is good")
    assert json.loads(presto(home, "show", "champion", "--json"))["method"] == "LS"
    presto(home, "rollback", "--why", "it hums")
    champion = json.loads(presto(home, "show", "champion", "--json"))
    assert champion["method"] == "S"
    assert [d["action"] for d in champion["decisions"]] == ["promote", "rollback"]
    presto(home, "pull", "presto-dataset@candidate", str(tmp_path / "data"))
    assert {"manifest.json", "shards/0.parquet"} <= files_below(tmp_path / "data").keys()
    presto(
        TinyRegistry("s3://latents/elsewhere", home.tracker, {}), "push", str(tmp_path / "data"), "--name", "data-copy"
    )
    presto(home, "verify")
    orphan = TinyRegistry("s3://latents/elsewhere", home.tracker, {})
    home.client.delete_registered_model("data-copy")
    for name in list(home.catalog.models):
        for version in home.catalog.list_newest(name, limit=9):
            if version.artifact_id == "0" * 16 and "elsewhere" in version.uri:
                home.client.delete_model_version(name, str(version.number))
    assert json.loads(presto(orphan, "gc", "--older-than-hours", "0", "--json"))["garbage"] == []  # its id is in use
    presto(home, "gc")


def start_writer(home: TinyRegistry, environment: dict[str, str], folder: Path, number: int) -> subprocess.Popen[str]:
    """Start a process that registers two contents and promotes both, as fast as it can."""
    program = f"""
import sys
from pipelines.registry.promotion import Promoter
from pipelines.inference.lazy_mlflow import save_mlflow_model
from pipelines.registry.publish import publish
from pipelines.storage.filesystem import open_folder
from pipelines.tracking.client import open_tracker
from presto_core.artifacts.manifest import artifact_folder, read_artifact
from presto_core.config.promotion import PromoteConfig
from presto_core.config.sections import TrackingConfig

tracker, root = open_tracker(TrackingConfig()), open_folder({home.root!r})
sys.stdin.readline()
for id in {[home.made["S"].id, home.made["LS"].id]!r}[:: 1 if {number} % 2 else -1]:
    run = tracker.client.create_run(tracker.experiment_id).info.run_id
    artifact = read_artifact(artifact_folder(root, id))
    made = publish(tracker.client, "contested", artifact, mlflow_run=run, stage="x", root=root, pack=save_mlflow_model)
    promoter = Promoter(tracker.client, gate=lambda *_: [])
    promoter.promote(f"contested@v{{made.number}}", PromoteConfig(), why="writer {number}")
"""
    folder.mkdir()
    how: dict[str, Any] = {"cwd": folder, "env": os.environ | environment, "text": True}
    how |= {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", program], **how)


def check_consistent(home: TinyRegistry) -> None:
    """Check that the registry is as if the writers had run one after the other."""
    versions = home.catalog.list_newest("contested", limit=99)
    assert len(versions) == 2  # two contents, two versions
    entries = PromotionLog(open_promotion_log_folder(home.client, "contested")).read_all()
    assert [e.number for e in entries] == list(range(1, len(entries) + 1))
    assert all(one.version != other.version for one, other in zip(entries, entries[1:]))
    aliases = {alias: int(n) for alias, n in home.client.get_registered_model("contested").aliases.items()}
    assert aliases[CHAMPION] == entries[-1].version
    assert aliases[CANDIDATE] in (1, 2)
    former = {e.version for e in entries} - {entries[-1].version}
    assert {n for alias, n in aliases.items() if alias.startswith("archived-")} == former


@pytest.fixture
def contested(team: tuple[MlflowServer, TinyRegistry]) -> Iterator[TinyRegistry]:
    """The tiny registry; afterwards the contested model is deleted with its promotion log."""
    yield team[1]
    team[1].client.delete_registered_model("contested")
    open_folder(team[1].root).child("registry").child("contested").delete()


def test_four_writers_at_once(contested: TinyRegistry):
    barrier = threading.Barrier(4)

    def one(number: int) -> None:
        barrier.wait(PATIENCE_S)
        for of in ("S", "LS") if number % 2 else ("LS", "S"):
            contested.register(contested.made[of], "contested", "x")
            version = contested.catalog.find(f"contested@{content_hash(contested.made[of].manifest)}")
            promoter = Promoter(contested.client, gate=lambda *_: [])
            promoter.promote(f"contested@v{version.number}", PromoteConfig(), why=f"writer {number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(4)))
    check_consistent(contested)


def test_sixteen_processes_at_once(team: tuple[MlflowServer, TinyRegistry], contested: TinyRegistry, tmp_path: Path):
    started = [start_writer(contested, team[0].client_environment(), tmp_path / str(n), n) for n in range(16)]
    for process in started:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        _, output = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, output[-2000:]
    check_consistent(contested)


def test_the_data_base_is_killed_and_comes_back_with_all_of_it(
    team: tuple[MlflowServer, TinyRegistry], postgres: Postgres
):
    _, home = team
    before = {(v.name, v.number, v.aliases) for v in home.catalog.list_all()}
    postgres.stop(kill=True)
    postgres.start()
    assert wait_for(lambda: _versions(home) == before, PATIENCE_S)


def _versions(home: TinyRegistry) -> set[tuple[str, int, tuple[str, ...]]]:
    from mlflow.exceptions import MlflowException

    try:
        return {(v.name, v.number, v.aliases) for v in home.catalog.list_all()}
    except MlflowException:
        return set()


def test_a_server_killed_in_mid_training_loses_and_duplicates_no_metric(
    team: tuple[MlflowServer, TinyRegistry], monkeypatch: pytest.MonkeyPatch
):
    """Compared point by point with the same, undisturbed training in another experiment."""
    server, home = team
    keys = {"teacher.steps": 240, "loop.log_every": 1, "loop.checkpoint_every": 60, "storage.root": home.root}

    def train_and_read_metrics(experiment: str, root: str) -> dict[str, list[tuple[int, float]]]:
        config = teacher_config(root, home.made["data"].uri, **keys | {"storage.root": root})
        config = config.model_copy(update={"tracking": TrackingConfig(experiment=experiment)})
        artifact = train_teacher.run(config)
        tracker = open_tracker(config.tracking)
        (run,) = tracker.client.search_runs([tracker.experiment_id], f"tags.`{RUN_ID}` = '{artifact.id}'")
        assert run.info.status == "FINISHED"
        histories = {n: tracker.client.get_metric_history(run.info.run_id, n) for n in ("dsm_loss", "grad_norm")}
        return {name: [(p.step, p.value) for p in points] for name, points in histories.items()}

    calm = train_and_read_metrics("calm", "s3://latents/calm")
    update = TeacherTraining.update

    def update_and_disturb(self: TeacherTraining, *batch: Any, **how: Any) -> Any:
        if self.state.total_step in (60, 180):
            server.kill()
        if self.state.total_step in (120, 230):
            server.start()
        return update(self, *batch, **how)

    monkeypatch.setattr(TeacherTraining, "update", update_and_disturb)
    monkeypatch.setattr(tracking_run, "PAUSE_S", 0.5)
    monkeypatch.setattr(tracking_run, "FLUSH_EVERY_S", 0.1)
    assert train_and_read_metrics("disturbed", "s3://latents/disturbed") == calm
    assert [step for step, _ in calm["dsm_loss"]] == list(range(1, 241))


def test_passwords_in_front(postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without a password access is refused; with it stages and commands work; the password is never printed."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    server = MlflowServer(tmp_path, postgres.uri("mlflow"), str(tmp_path / "files"), auth=postgres.uri("auth"))
    server.start()
    try:
        refused = CliRunner().invoke(app, ["registry", "list", f"tracking.uri={server.uri}"])
        assert "401" in str(refused.exception)
        for name, value in server.client_environment().items():
            monkeypatch.setenv(name, value)
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")
        home = make_tiny_registry(str(tmp_path / "store"))
        shown = json.loads(presto(home, "show", "candidate-ls", "--json"))
        assert shown["method"] == "LS"
        assert server.password not in json.dumps(shown)
    finally:
        server.kill()


def test_mlflow_serves_a_registered_model(team: tuple[MlflowServer, TinyRegistry], tmp_path: Path):
    """`mlflow models serve` with only the server's address returns music for the stored example."""
    beside_python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # as in an activated environment
    environment = team[0].client_environment() | {"PATH": beside_python}
    port = find_free_ports(1)[0]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/served@candidate"]
    command += ["--port", str(port), "--host", "127.0.0.1", "--env-manager", "local"]
    make_playable_registry("s3://latents/served", "served")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        assert wait_for(lambda: _count_pings(port) or process.poll() is not None, PATIENCE_S)
        assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
        body = json.dumps(
            {"dataframe_split": {"columns": ["prompt"], "data": [["solo piano"]]}, "params": {"steps": 1}}
        )
        request = Request(f"http://127.0.0.1:{port}/invocations", body.encode(), {"Content-Type": "application/json"})
        (row,) = json.load(urlopen(request, timeout=PATIENCE_S))["predictions"]
        assert row["sample_rate_hz"] == 44100
        assert row["wav_base64"].startswith("UklGR")  # RIFF
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _count_pings(port: int) -> bool:
    try:
        return bool(urlopen(f"http://127.0.0.1:{port}/ping", timeout=2).status == 200)
    except OSError:
        return False
