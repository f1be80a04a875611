"""`presto doctor` against working and broken servers: what it finds, what it prints, and that it leaves no trace."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from infra.cli import main as cli
from pipelines.cluster.session import ClusterError
from pipelines.doctor import doctor, machine_checks, service_checks
from pipelines.doctor.doctor import CheckOutcome, DoctorCheck, Result
from pipelines.stages.resources import SkippedError, count_fitting_workers, list_stages_with_workers
from pipelines.storage.local_s3 import Server
from pipelines.storage.s3_clients import create_s3_client
from pipelines.tracking.client import create_client, open_tracker
from presto_core.config.sections import ClusterConfig, TrackingConfig
from presto_core.errors import UserError

DEAD = "http://127.0.0.1:9"


def run_named_check(name: str, *overrides: str) -> CheckOutcome:
    """Run one of the checks for some settings."""
    (check,) = [check for check in doctor.make_checks(None, list(overrides)) if check.name == name]
    return doctor.run_check(check)


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def keys(bucket: str) -> set[str]:
    listed = create_s3_client().list_objects_v2(Bucket=bucket)
    return {entry["Key"] for entry in listed.get("Contents", ())}


# --- storage


@pytest.mark.services
@pytest.mark.parametrize("root", ["s3://latents", "s3://latents/new", "s3://latents/music"])
def test_a_bucket_is_tried_and_left_as_it_was(object_store: Server, root: str):
    create_s3_client().put_object(Bucket="latents", Key="music/object", Body=b"of the user")
    before = keys("latents")
    for name in ("storage", "conditional put"):
        assert run_named_check(name, f"storage.root={root}").result is Result.OK
    assert keys("latents") == before


@pytest.mark.parametrize("made", ["", "store"])
def test_a_folder_is_tried_and_left_as_it_was(empty: Path, made: str):
    (empty / made).mkdir(exist_ok=True)
    before = tree(empty)
    for name in ("storage", "conditional put"):
        assert run_named_check(name, "storage.root=store/deeper").result is Result.OK
    assert tree(empty) == before


@pytest.mark.services
@pytest.mark.parametrize(
    ("root", "environment", "detail", "hint"),
    [
        ("s3://nowhere/x", {}, "bucket 'nowhere'", "storage.root"),
        ("s3://latents", {"AWS_SECRET_ACCESS_KEY": "geheim"}, "bucket 'latents'", "AWS_SECRET_ACCESS_KEY"),
        ("s3://latents", {"AWS_ACCESS_KEY_ID": "nobody"}, "bucket 'latents'", "AWS_ACCESS_KEY_ID"),
        ("s3://latents", {"AWS_ENDPOINT_URL": DEAD}, DEAD, "AWS_ENDPOINT_URL"),
    ],
)
def test_wrong_storage_is_named_with_a_fix(object_store: Server, root: str, environment, detail, hint, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    finding = run_named_check("storage", f"storage.root={root}")
    assert (finding.result, detail in finding.detail, hint in finding.fix) == (Result.FAILED, True, True), finding
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(finding)


@pytest.mark.services
def test_the_settings_of_s3_are_shown_without_secrets(object_store: Server, monkeypatch):
    finding = run_named_check("S3 settings", "storage.root=s3://latents")
    assert finding.result is Result.OK
    for part in (f"{object_store.endpoint} (AWS_ENDPOINT_URL)", "region us-east-1", "path", "AWS_ACCESS_KEY_ID"):
        assert part in finding.detail
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3.internal")
    monkeypatch.setenv("HTTP_PROXY", "http://me:geheim@proxy:3128")
    finding = run_named_check("S3 settings", "ingest.source=s3://latents/music")
    assert "proxy http://proxy:3128 (HTTP_PROXY)" in finding.detail
    assert not {"geheim", object_store.access_key, object_store.secret_key} & set(finding.detail.split())
    assert run_named_check("S3 settings").result is Result.SKIPPED


@pytest.fixture
def unprivileged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Drop the superuser's permission to write anywhere."""
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)
    yield
    os.seteuid(user)


def test_a_folder_that_cannot_be_written_is_named(unprivileged):
    root = "/var/presto"
    finding = run_named_check("storage", f"storage.root={root}")
    assert finding.result is Result.FAILED
    assert f"{root}/presto-doctor-" in finding.detail
    assert "permissions" in finding.fix


def test_a_root_that_is_no_folder_is_named(empty: Path):
    (empty / "store").write_text("a file")
    finding = run_named_check("storage", "storage.root=store")
    assert (finding.result, finding.fix) == (Result.FAILED, "choose another storage.root")
    assert tree(empty) == {"store"}


# --- clock


@contextmanager
def server_of(seconds: float) -> Iterator[str]:
    """Run a server whose clock is some seconds off."""

    now = time.time

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(403)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return formatdate(now() + seconds, usegmt=True)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.services
def test_the_clock_is_that_of_the_store_on_one_machine(object_store: Server):
    finding = run_named_check("clock", "storage.root=s3://latents")
    assert finding.result is Result.OK
    assert finding.detail.endswith(f"s apart from {object_store.endpoint}")


@pytest.mark.parametrize(("seconds", "side"), [(-3600, "ahead of"), (3600, "behind")])
def test_a_wrong_clock_is_named(seconds: float, side: str, monkeypatch):
    with server_of(seconds) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        finding = run_named_check("clock", "storage.root=s3://latents")
    assert finding.result is Result.FAILED
    assert f" {side} " in finding.detail
    assert url in finding.detail
    assert "NTP" in finding.fix


@pytest.mark.parametrize("url", [DEAD, "store:9000"])
def test_a_store_that_does_not_answer_is_named(url: str, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    finding = run_named_check("clock", "storage.root=s3://latents")
    assert (finding.result, "AWS_ENDPOINT_URL" in finding.detail + finding.fix) == (Result.FAILED, True)
    assert url in finding.detail


def test_a_folder_needs_no_clock():
    assert run_named_check("clock").result is Result.SKIPPED


# --- MLflow


@pytest.mark.services
def test_a_server_is_tried_and_left_as_it_was(mlflow_server: str, empty: Path):
    from mlflow.entities import ViewType

    config = TrackingConfig(uri=mlflow_server, experiment="doctors")
    client, _ = create_client(config)
    experiments = {e.name for e in client.search_experiments()}
    found = service_checks.check_mlflow(config)
    assert {e.name for e in client.search_experiments()} == experiments
    tracker = open_tracker(config)
    found_again = service_checks.check_mlflow(config)
    assert found != found_again
    assert found.startswith(found_again)  # the first one adds that the experiment does not exist yet
    assert client.search_runs([tracker.experiment_id]) == []
    (run,) = client.search_runs([tracker.experiment_id], run_view_type=ViewType.DELETED_ONLY)
    assert run.data.tags["presto.doctor"] == "true"
    assert run.data.metrics == {"doctor": 1.5}
    assert client.list_artifacts(run.info.run_id) == []
    client.delete_experiment(tracker.experiment_id)
    finding = run_named_check("MLflow", f"tracking.uri={mlflow_server}", "tracking.experiment=doctors")
    assert finding.result is Result.FAILED
    assert finding.detail == f"experiment 'doctors' of MLflow at {mlflow_server} is deleted"
    assert finding.fix.endswith(f"mlflow experiments restore --experiment-id {tracker.experiment_id}")


def test_a_data_base_is_tried_and_left_as_it_was(empty: Path, mlflow_database: Path):
    """First without a database; then with one, whose artifacts go into a folder."""
    assert run_named_check("MLflow").result is Result.OK
    assert tree(empty) == set()
    (empty / ".presto").mkdir()
    shutil.copy(mlflow_database, ".presto/mlflow.db")
    open_tracker(TrackingConfig())
    before = tree(empty)
    assert run_named_check("MLflow").result is Result.OK
    assert tree(empty) == before


def test_a_dead_server_is_named_without_its_password():
    finding = run_named_check("MLflow", "tracking.uri=http://me:geh@im@127.0.0.1:9")
    assert finding.result is Result.FAILED
    assert f"MLflow at {DEAD} " in finding.detail
    assert "geh@im" not in str(finding)
    assert "tracking.uri" in finding.fix


def test_a_silent_server_times_out():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        check = DoctorCheck("MLflow", "", partial(service_checks.check_mlflow, TrackingConfig(uri=uri)), timeout_s=1)
        assert doctor.run_check(check).detail == "no answer within 1 s"


# --- Ray


@pytest.mark.ray
def test_a_cluster_is_compared_with_what_each_stage_asks_for(shared_ray: None):
    def compare_with_cluster(stage: str, **settings: float) -> str:
        probe = machine_checks.RayCheck(ClusterConfig(**settings))
        assert "1 node, 2 CPUs, 0 GPUs" in probe.connect()
        return probe.check_fits(stage)

    assert compare_with_cluster("train-teacher", num_workers=2) == "2 workers of 0.8 CPUs; in all 1.8 CPUs, 0 GPUs"
    by_ray = compare_with_cluster("ingest", num_workers=1, data_workers=1)
    assert by_ray == "1 worker of 0.8 CPUs; in all 0.8 CPUs, 0 GPUs"
    with pytest.raises(ClusterError, match=r"3\.6 CPUs .* has 2; .*cluster\.num_workers"):
        compare_with_cluster("distill-steps", num_workers=4)
    with pytest.raises(ClusterError, match=r"1 GPUs .* has 0; "):
        compare_with_cluster("distill-layers", gpus_per_worker=1)
    with pytest.raises(ClusterError, match=r"3\.2 CPUs .* has 2; "):
        compare_with_cluster("evaluate", data_workers=4)
    with pytest.raises(SkippedError, match=r"num_workers=0 trains in the command's own process"):
        compare_with_cluster("train-teacher", num_workers=0)
    assert compare_with_cluster("evaluate", num_workers=0)


def test_a_worker_must_fit_on_one_node():
    small, large = {"CPU": 2.0}, {"CPU": 9.0, "GPU": 2.0}
    assert count_fitting_workers([small, small], {"CPU": 0.8, "GPU": 0}) == 4
    assert count_fitting_workers([small, large], {"CPU": 3, "GPU": 0}) == 3
    assert count_fitting_workers([small, large], {"CPU": 3, "GPU": 1}) == 2
    assert count_fitting_workers([{"CPU": 0.3}], {"CPU": 0.1, "GPU": 0}) == 3  # in spite of rounding
    probe = machine_checks.RayCheck(ClusterConfig(num_workers=2, cpus_per_worker=3), [small] * 4)
    with pytest.raises(ClusterError, match=r"2 workers of 3 CPUs .*room for 0; .*cluster\.num_workers"):
        probe.check_fits("train-teacher")


# --- this machine


def test_an_old_python_is_named():
    assert machine_checks.check_python().startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    with pytest.raises(UserError, match=r"3\.10\.14.*>=3\.11"):
        machine_checks.check_python((3, 10, 14))


def test_missing_gpus_are_named_if_workers_on_this_machine_request_them(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert "nccl is not needed" in machine_checks.check_torch_and_gpus(ClusterConfig())
    assert "gpus_per_worker=1" in machine_checks.check_torch_and_gpus(ClusterConfig(gpus_per_worker=1, address="auto"))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"gpus_per_worker=1.*; .*NVIDIA.*gpus_per_worker=0"):
            machine_checks.check_torch_and_gpus(ClusterConfig(gpus_per_worker=1))


def test_a_small_disk_is_named(tmp_path: Path):
    assert "GiB free" in machine_checks.check_free_space(tmp_path / "not" / "there")
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        machine_checks.check_free_space(tmp_path, min_bytes=2**62)


def test_a_missing_package_is_named():
    assert machine_checks.check_package("av", "av", "m4a", "").startswith("av ")
    with pytest.raises(UserError, match=r"none-such.* m4a .*; pip install it"):
        machine_checks.check_package("none_such", "none-such", "m4a", "pip install it")


# --- all of it


def test_whatever_happens_in_a_check_the_others_run(monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "geheim")

    def bug() -> str:
        raise RuntimeError("a geheim\nplace")

    def fine() -> str:
        return "well, geheim"

    findings = doctor.run(
        [
            DoctorCheck("a", "", bug),
            DoctorCheck("b", "", bug, required=False),
            DoctorCheck("c", "", fine),
            DoctorCheck("d", "", fine, after="a"),
            DoctorCheck("e", "", fine, after="c"),
            DoctorCheck("f", "", lambda: Path("/none").read_text()),
        ]
    )
    assert [f.result for f in findings] == ["failed", "lacking", "ok", "skipped", "ok", "failed"]
    assert findings[0].detail == "unexpected RuntimeError: a *** place"
    assert findings[2].detail == "well, ***"
    assert findings[5].detail == "/none: No such file or directory"
    assert not doctor.show(findings)
    assert doctor.show(findings[1:5])


def test_a_dry_run_touches_nothing(empty: Path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", DEAD)
    args = ["doctor", "paper", "storage.root=s3://nowhere/x", f"tracking.uri={DEAD}", "--dry-run"]
    shown = CliRunner().invoke(cli.app, args)
    assert shown.exit_code == 0
    assert "put, get, list and delete below s3://nowhere/x" in shown.stdout
    planned = json.loads(CliRunner().invoke(cli.app, [*args, "--json"]).stdout)
    names = [check["check"] for check in planned]
    assert [name for name in names if name.startswith("Ray: ")] == [f"Ray: {s}" for s in list_stages_with_workers()]
    assert tree(empty) == set()


@pytest.mark.parametrize(
    ("command", "message"), [("start", "would start an S3 server on a free port"), ("stop", "no S3 server is running")]
)
def test_s3_start_and_stop_have_dry_runs(empty: Path, command: str, message: str):
    shown = CliRunner().invoke(cli.app, ["s3", command, "--dry-run"])
    assert (shown.exit_code, message in " ".join(shown.output.split())) == (0, True)
    assert tree(empty) == set()


@pytest.mark.services
@pytest.mark.ray
def test_with_working_services_all_checks_pass_and_nothing_is_left(
    object_store: Server, mlflow_server: str, shared_ray: None, empty: Path
):
    before = keys("latents")
    args = ("doctor", "demo", "storage.root=s3://latents/mine", f"tracking.uri={mlflow_server}")
    done = CliRunner().invoke(cli.app, [*args, "--json"])
    results = {check["check"]: check["result"] for check in json.loads(done.stdout)["checks"]}
    assert (done.exit_code, set(results.values()), len(results)) == (0, {"ok"}, 20)
    assert object_store.secret_key not in done.output
    assert (tree(empty), keys("latents")) == (set(), before)


# over 10 s: a command that imports torch, MLflow and Ray, and waits for three servers until it times out
@pytest.mark.services
def test_with_broken_services_each_fault_is_reported_and_nothing_is_left(object_store: Server, tmp_path: Path):
    args = ("demo", "storage.root=s3://latents", f"tracking.uri={DEAD}", "cluster.address=127.0.0.1:9")
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
    mine["AWS_SECRET_ACCESS_KEY"] = "geheim"
    command = [sys.executable, "-m", "infra.cli.main", "doctor", *args]
    done = subprocess.run(command, cwd=tmp_path, env=mine, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(": storage, MLflow, Ray")
    for detail in ("'latents'", DEAD, "'127.0.0.1:9'"):
        assert detail in done.stdout
    assert done.stdout.count("FAILED") == 3
    assert done.stdout.count("│ skipped │") == 6
    assert "geheim" not in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert tree(tmp_path) == set()
