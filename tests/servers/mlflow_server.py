"""An MLflow server as a process of one's own: any data base behind it, artifacts through it, passwords where wanted."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from pipelines.storage.local_s3 import HOST, find_free_ports
from presto_core.errors import UserError

PATIENCE_S = 180
ADMIN = "admin"


class ServerError(UserError):
    """The server does not start; the message holds the last line of its log."""


@dataclass
class MlflowServer:
    """A server that can be killed and started again on the same port.

    Attributes:
        folder: where its log, and settings of its own, lie.
        backend: URI of its data base; may hold a password.
        artifacts: where it keeps artifacts, which clients reach through it alone: a folder or s3://…
        environment: for the server: credentials of S3.
        auth: URI of the data base of its users; empty lets everyone in.
    """

    folder: Path
    backend: str = field(repr=False)
    artifacts: str
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    auth: str = field(default="", repr=False)
    workers: int = 1
    port: int = field(default_factory=lambda: find_free_ports(1)[0])
    password: str = field(default_factory=lambda: secrets.token_urlsafe(18), repr=False)
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://{HOST}:{self.port}"

    def client_environment(self) -> dict[str, str]:
        """What a client needs."""
        access = {"MLFLOW_TRACKING_USERNAME": ADMIN, "MLFLOW_TRACKING_PASSWORD": self.password} if self.auth else {}
        return {"MLFLOW_TRACKING_URI": self.uri, **access}

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            ServerError: it ended, or did not answer in time.
        """
        command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(self.port)]
        command += ["--workers", str(self.workers), "--artifacts-destination", self.artifacts]
        command += ["--app-name", "basic-auth"] if self.auth else []
        # settings that hold passwords go by the environment: a command line can be read by every user of a machine
        env = {**os.environ, **self.environment, **self._settings()}
        env["MLFLOW_BACKEND_STORE_URI"] = self.backend
        with (self.folder / "mlflow.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
        deadline = time.monotonic() + PATIENCE_S
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                lines = (self.folder / "mlflow.log").read_text(errors="replace").strip().splitlines()
                self.kill()
                raise ServerError(f"the MLflow server did not start: {lines[-1] if lines else 'no log'}")
            time.sleep(0.2)

    def kill(self) -> None:
        """End it at once, with all its workers."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _settings(self) -> dict[str, str]:
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        if not self.auth:
            return settings
        path = self.folder / "auth.ini"
        lines = ["[mlflow]", "default_permission = READ", f"database_uri = {self.auth}"]
        lines += [f"admin_username = {ADMIN}", f"admin_password = {self.password}"]
        lines += ["authorization_function = mlflow.server.auth:authenticate_request_basic_auth"]
        path.touch(mode=0o600)
        path.write_text("\n".join(lines) + "\n")
        key = self.folder / "flask_key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_text(secrets.token_hex(32))
        return settings | {"MLFLOW_AUTH_CONFIG_PATH": str(path), "MLFLOW_FLASK_SERVER_SECRET_KEY": key.read_text()}

    def _is_ready(self) -> bool:
        try:
            urlopen(f"{self.uri}/health", timeout=2).close()
        except HTTPError as error:
            return error.code in (401, 403)
        except (URLError, OSError):
            return False
        return True
