"""Credentials of MLflow that change while a run goes on are used from the next request on; `test_storage.py` has S3's.

MLflow has two: of its server, and of the object store where a run's files go without a server between.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from pipelines.storage.filesystem import open_folder
from pipelines.storage.local_s3 import Server
from pipelines.tracking.client import create_client
from pipelines.tracking.run import TrackedRun
from presto_core.config.sections import TrackingConfig
from tests.servers.mlflow_server import ADMIN, MlflowServer

pytestmark = pytest.mark.services
WRONG = "wrong-secret-0123456789"


@pytest.fixture
def profile(object_store: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with AWS's two files, and nothing about S3 in the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for variable, name in (("AWS_CONFIG_FILE", "config"), ("AWS_SHARED_CREDENTIALS_FILE", "credentials")):
        monkeypatch.setenv(variable, str(tmp_path / name))
    return tmp_path


def write_keys(folder: Path, server: Server, secret: str) -> None:
    """Static keys, as a login writes them, perhaps anew every hour."""
    (folder / "config").write_text(f"[default]\nregion = us-east-1\nendpoint_url = {server.endpoint}\n")
    text = f"[default]\naws_access_key_id = {server.access_key}\naws_secret_access_key = {secret}\n"
    (folder / "credentials").write_text(text)


def grant_keys(folder: Path, server: Server, secret: str) -> None:
    """Keys that expire, as a role or a process provides them; boto3 renews them in their last ten minutes."""
    expires = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
    keys = {"AccessKeyId": server.access_key, "SecretAccessKey": secret, "Expiration": expires}
    (folder / "granted.json").write_text(json.dumps({"Version": 1, **keys}))
    lines = ("[default]", "region = us-east-1", f"endpoint_url = {server.endpoint}")
    process = f"credential_process = cat {folder / 'granted.json'}"
    if not (folder / "config").exists():
        (folder / "config").write_text("\n".join([*lines, process]))


@pytest.mark.parametrize("provide", [write_keys, grant_keys])
def test_a_runs_files_reach_the_object_store_with_keys_that_are_renewed(
    profile: Path, object_store: Server, workdir: Path, provide
):
    provide(profile, object_store, object_store.secret_key)
    client, _ = create_client(TrackingConfig())
    location = f"s3://latents/mlflow/{profile.name}-{provide.__name__}"
    experiment = client.create_experiment(f"files of {profile.name}", artifact_location=location)
    run = TrackedRun(client, client.create_run(experiment).info.run_id)
    plots = [workdir / f"plot{number}.json" for number in range(3)]
    for plot in plots:
        plot.write_text("{}")
    run.attach(plots[0])
    provide(profile, object_store, WRONG)
    with pytest.raises(Exception, match=r"SignatureDoesNotMatch|Invalid credentials|Forbidden"):
        run.attach(plots[1])
    provide(profile, object_store, object_store.secret_key)
    run.attach(plots[2])
    files = {info.base_name for info in open_folder(location).list_files(recursive=True)}
    assert {"plot0.json", "plot2.json"} <= files


@pytest.fixture
def guarded_mlflow(mlflow_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    """A server that asks for a password, which clients read in ~/.mlflow/credentials."""
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    database = tmp_path / "served.db"
    database.write_bytes(mlflow_database.read_bytes())
    users = f"sqlite:///{tmp_path / 'users.db'}"
    server = MlflowServer(tmp_path, f"sqlite:///{database}", str(tmp_path / "files"), auth=users)
    server.start()
    yield server
    server.kill()


def write_password(home: Path, password: str) -> None:
    (home / ".mlflow").mkdir(exist_ok=True)
    text = f"[mlflow]\nmlflow_tracking_username = {ADMIN}\nmlflow_tracking_password = {password}\n"
    (home / ".mlflow/credentials").write_text(text)


# over 10 s: the start of a server that asks for passwords
def test_points_wait_for_the_new_password_of_the_server(guarded_mlflow: MlflowServer, tmp_path: Path):
    write_password(tmp_path, guarded_mlflow.password)
    client, _ = create_client(TrackingConfig(uri=guarded_mlflow.uri))
    run = TrackedRun(client, client.create_run("0").info.run_id)
    run.log(1, {"loss": 1.0})
    run.flush_all()
    write_password(tmp_path, WRONG)
    run.log(2, {"loss": 0.5})
    assert not run.flush()
    with pytest.raises(MlflowException):
        client.get_run(run.mlflow_id)
    write_password(tmp_path, guarded_mlflow.password)
    run.finish()
    assert [(p.step, p.value) for p in client.get_metric_history(run.mlflow_id, "loss")] == [(1, 1.0), (2, 0.5)]
