"""A cluster that the tests share, and a user on another machine who sends jobs to it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.storage.local_s3 import Server
from tests.pipelines.conftest import begin as begin
from tests.servers.ray_cluster import RayCluster, make_user_environment
from tests.support.processes import PATIENCE_S
from tests.support.warm_commands import run_presto

PRESTO = (sys.executable, "-m", "infra.cli.main")


@dataclass(frozen=True)
class User:
    """A user who sends jobs, with a home folder and an environment that share nothing with the cluster."""

    home: Path
    environment: dict[str, str]
    url: str

    def presto(self, *args: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        return run_presto(args, cwd=self.home, env=self.environment | environment, stdin=stdin, timeout_s=PATIENCE_S)

    def list_jobs(self) -> list[dict[str, Any]]:
        listed = self.presto("jobs", "list", "--json")
        assert listed.returncode == 0, listed.stderr
        rows: list[dict[str, Any]] = json.loads(listed.stdout)
        return rows


@dataclass(frozen=True)
class NodeSecrets:
    """S3 credentials of the nodes, in a file that their environment names."""

    file: Path
    server: Server

    def install(self) -> None:
        server_env = self.server.environment()
        self.file.write_text(
            f"[default]\naws_access_key_id = {server_env['AWS_ACCESS_KEY_ID']}\n"
            f"aws_secret_access_key = {server_env['AWS_SECRET_ACCESS_KEY']}\n"
        )

    def remove(self) -> None:
        self.file.write_text("")

    def environment(self) -> dict[str, str]:
        keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        rest = {name: value for name, value in self.server.environment().items() if name not in keys}
        return rest | {"AWS_SHARED_CREDENTIALS_FILE": str(self.file), "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(scope="session")
def node_secrets(object_store: Server, tmp_path_factory: pytest.TempPathFactory) -> NodeSecrets:
    secrets = NodeSecrets(tmp_path_factory.mktemp("secrets") / "credentials", object_store)
    secrets.install()
    return secrets


@pytest.fixture(scope="session")
def plane(node_secrets: NodeSecrets, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A head and one worker node."""
    with RayCluster(tmp_path_factory.mktemp("plane"), cpus=(2,), environment=node_secrets.environment()) as up:
        yield up


@pytest.fixture(scope="session")
def user(plane: RayCluster, object_store: Server, mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> User:
    home = tmp_path_factory.mktemp("user")
    mine = {"RAY_AUTH_TOKEN": plane.token, "RAY_API_SERVER_ADDRESS": plane.url, "MLFLOW_TRACKING_URI": mlflow_server}
    return User(home, make_user_environment(home, **mine, **object_store.environment()), plane.url)
