"""An MLflow server in its own process, with any database, proxied artifacts and optional authentication."""

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
    """The server does not start; the message has the last line of its log."""


@dataclass
class MlflowServer:
    """A server that can be killed and restarted on the same port.

    Attributes:
        folder: holds its log and settings.
        backend: URI of its database; can contain a password.
        artifacts: folder or s3:// URI of its artifacts, which clients reach only through the server.
        environment: variables of the server: S3 credentials.
        auth: URI of its user database; empty disables authentication.
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
        """Return the variables that a client needs."""
        access = {"MLFLOW_TRACKING_USERNAME": ADMIN, "MLFLOW_TRACKING_PASSWORD": self.password} if self.auth else {}
        return {"MLFLOW_TRACKING_URI": self.uri, **access}

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            ServerError: it has exited, or does not answer in time.
        """
        command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(self.port)]
        command += ["--workers", str(self.workers), "--artifacts-destination", self.artifacts]
        command += ["--app-name", "basic-auth"] if self.auth else []
        # passwords are passed in the environment, because every user of the machine can read a command line
        env = {**os.environ, **self.environment, **self._settings()}
        env["MLFLOW_BACKEND_STORE_URI"] = self.backend
        with (self.folder / "mlflow.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
        deadline = time.monotonic() + PATIENCE_S
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                lines = (self.folder / "mlflow.log").read_text(errors="replace").strip().splitlines()
                self.kill()
                reason = lines[-1] if lines else "no log"
                raise ServerError(f"the MLflow server does not start: {reason}; see {self.folder / 'mlflow.log'}")
            time.sleep(0.2)

    def kill(self) -> None:
        """Kill the server and all its workers."""
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
