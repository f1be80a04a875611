"""Which MLflow a command uses: its tracking URI, refused in one sentence where it cannot be one."""

from __future__ import annotations

import os
import re
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from pipelines.redaction import redact
from pipelines.tracking.retry import TrackingError
from presto_core.config.loader import ConfigError
from presto_core.config.sections import TrackingConfig

HOME = Path(".presto")
VARIABLE = "MLFLOW_TRACKING_URI"
DRIVERS = {  # module of the driver that SQLAlchemy takes by default -> package
    "postgresql": ("psycopg2", "psycopg2-binary"),
    "mysql": ("MySQLdb", "mysqlclient"),
    "mssql": ("pyodbc", "pyodbc"),
}
DRIVER_PACKAGES = {"psycopg2": "psycopg2-binary", "mysqldb": "mysqlclient"}
DATABRICKS = ("databricks", "databricks-uc", "uc")
KNOWN = "sqlite:///FILE, http(s)://HOST, postgresql://, mysql:// or mssql://"


class TrackingUriError(TrackingError, ConfigError):
    """The tracking URI, or the file that it names, cannot be MLflow's."""


def tracking_uri(config: TrackingConfig) -> str:
    """Return the URI in use: tracking.uri, otherwise MLFLOW_TRACKING_URI, otherwise sqlite under .presto."""
    local = f"sqlite:///{(HOME / 'mlflow.db').absolute()}"
    return config.uri.strip() or os.environ.get(VARIABLE, "").strip() or local


def uri_source(config: TrackingConfig) -> str:
    """Name what the URI in use comes from, for messages."""
    return "tracking.uri" if config.uri.strip() or not os.environ.get(VARIABLE, "").strip() else VARIABLE


def sqlite_path(uri: str) -> Path | None:
    """Return the absolute path of the database file that a URI names; None if it names no SQLite file."""
    scheme, separator, name = uri.partition(":///")
    if not separator or scheme.lower().partition("+")[0] != "sqlite" or name.startswith("file:"):
        return None
    return Path(name.partition("?")[0]).absolute()


def check_uri(uri: str, source: str) -> None:
    """Check the form of a tracking URI, without touching what it names.

    Raises:
        TrackingUriError: it is a path, of an unknown scheme, without a host or a file, or its driver is not installed.
    """
    scheme, separator, rest = uri.partition("://")
    dialect, _, driver = scheme.lower().partition("+")
    if uri in DATABRICKS or dialect in DATABRICKS:
        return
    if not separator or dialect == "file":
        raise _refuse(uri, source, *_explain_path(uri))
    if dialect in ("http", "https"):
        _check_server(uri, source)
    elif dialect == "sqlite":
        _check_sqlite(uri, rest, source)
    elif dialect in DRIVERS:
        module, package = DRIVERS[dialect]
        if driver:
            module, package = driver, DRIVER_PACKAGES.get(driver, driver)
        if find_spec(module) is None:
            raise _refuse(
                uri, source, f"but its driver {module} is not installed", f"install it: pip install {package}"
            )
    elif scheme not in {found.name for found in entry_points(group="mlflow.tracking_store")}:
        raise _refuse(uri, source, f"but MLflow knows no scheme {scheme!r}", f"use {KNOWN}")


def _check_server(uri: str, source: str) -> None:
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise _refuse(uri, source, f"which is no address: {error}", "use http://HOST:5000") from None
    if not host or any(character.isspace() for character in uri):
        raise _refuse(uri, source, "which names no host", "use http://HOST:5000")


def _check_sqlite(uri: str, rest: str, source: str) -> None:
    if not rest.startswith("/"):
        raise _refuse(uri, source, "which has two slashes", f"a file needs three: sqlite:///{rest or 'mlflow.db'}")
    if rest[1:].partition("?")[0] in ("", ":memory:"):
        raise _refuse(
            uri, source, "a database in memory that no other process sees", "name a file: sqlite:///mlflow.db"
        )


def _explain_path(uri: str) -> tuple[str, str]:
    """Say what a value without a scheme, or with file://, is, and which URI is meant."""
    path = re.sub(r"(?i)^(file|sqlite):(//)?", "", uri) or "."
    if uri.lower().startswith("sqlite:"):
        return "which has no three slashes", f"use sqlite:///{path}"
    if re.match(r"[A-Za-z]:[\\/]|\\\\", uri):
        return "a path of Windows", f"use {KNOWN}"
    if re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri):
        return "an address without a scheme", f"use http://{uri}"
    if path.endswith((".db", ".sqlite", ".sqlite3")):
        return "a path", f"use sqlite:///{path}"
    return "a folder, where MLflow 3 keeps no runs any more", f"use sqlite:///{path.rstrip('/')}/mlflow.db"


def _refuse(uri: str, source: str, why: str, fix: str) -> TrackingUriError:
    return TrackingUriError(f"{source} is {redact(uri)!r}, {why}; {redact(fix)}")
