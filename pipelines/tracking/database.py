"""MLflow's SQLite database: made whole or not at all, named where it is unusable, and refused where it was moved.

MLflow makes its tables in some fifty migrations, which take seconds: a command that is killed meanwhile must not leave
a database that no later command can open.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import unquote

from pipelines.tracking.run import TrackingError
from pipelines.tracking.uri import TrackingUriError, sqlite_path, tracking_uri, uri_source
from presto_core.artifacts.durable import make_folders, sync_file, sync_folder
from presto_core.config.sections import TrackingConfig

MLARTIFACTS = "mlartifacts"
HEADER = b"SQLite format 3\0"
LEFTOVER_S = 600  # a folder in which a database was being made and that is older belongs to a killed command
FIRST_TABLES = {"experiments", "runs", "metrics", "params", "tags"}
READ_TIMEOUT_S = 2


def check_database(config: TrackingConfig) -> None:
    """Check the file that a sqlite URI names, if it does, without MLflow and in milliseconds.

    Raises:
        TrackingUriError: its folder is missing, or it is a folder, unreadable, no database or not MLflow's.
        TrackingError: it was left half made, or was moved or copied here with its project.
    """
    uri = tracking_uri(config)
    path = sqlite_path(uri)
    if path is None:
        return
    _check_file(path, f"{uri_source(config)} is {uri!r}")
    if not is_missing(path):
        _check_tables(path)
        check_not_moved(path)


def is_missing(path: Path) -> bool:
    """Whether no database was made yet; an empty file is what a killed command left, or what mktemp made."""
    return not path.exists() or path.stat().st_size == 0


def _check_file(path: Path, subject: str) -> None:
    folder = path.parent
    if not folder.is_dir() and folder.name != ".presto":  # .presto itself is made when it is needed
        raise TrackingUriError(f"{subject}, but there is no folder {folder}; create it: mkdir -p {folder}")
    if path.is_dir():
        raise TrackingUriError(f"{subject}, which is a folder; name a file in it: sqlite:///{path}/mlflow.db")
    if folder.is_dir() and not os.access(path if path.exists() else folder, os.R_OK | os.W_OK):
        raise TrackingUriError(f"{subject}, which this user may not read and write; correct its permissions")
    if not is_missing(path):
        with path.open("rb") as stream:
            if stream.read(len(HEADER)) != HEADER:
                raise TrackingUriError(f"{subject}, but {path} is no SQLite database; name another file")


def _check_tables(path: Path) -> None:
    tables = {name for (name,) in _query(path, "SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return
    if not tables & FIRST_TABLES:
        raise TrackingUriError(
            f"{path} is a database of something else, with tables such as {min(tables)}; name another file in "
            "tracking.uri"
        )
    # MLflow enters its own experiment after the last migration
    if not tables >= FIRST_TABLES or not any(_query(path, f"SELECT 1 FROM {name} LIMIT 1") for name in _CONTENT):
        raise TrackingError(
            f"MLflow's database {path} is not complete and holds no run: the command that made it was killed, or is "
            f"still at work; delete it and re-run your command: rm {path}"
        )


_CONTENT = ("experiments", "runs")


def check_not_moved(path: Path) -> None:
    """Refuse a database whose records point to the place that its project was moved or copied from.

    Raises:
        TrackingError: see above; nothing may be written before its records are rewritten.
    """
    former = find_former_home(path)
    if former is None:
        return
    how = "copied" if (former / path.name).exists() else "moved"
    raise TrackingError(
        f"this project was {how} from {former.parent} to {path.parent.parent}, and the records in {path} still point "
        "there; rewrite them: presto registry relocate"
    )


def find_former_home(path: Path) -> Path | None:
    """Return the .presto folder that a project's database was made in, if it is another one than it lies in now."""
    home = path.parent
    if home.name != ".presto" or is_missing(path):
        return None
    for (location,) in _query(path, "SELECT artifact_location FROM experiments ORDER BY experiment_id"):
        former = Path(unquote(str(location).removeprefix("file://"))).parent
        if not str(location).startswith("file:///") or not str(location).endswith(f"/.presto/{MLARTIFACTS}"):
            continue
        with suppress(OSError):
            if former.samefile(home):
                continue
        # the files of a database that another project uses stay where they are
        if (former / path.name).exists() or not (former / MLARTIFACTS).exists():
            return former
    return None


def _query(path: Path, query: str) -> list[tuple[str, ...]]:
    """Read from a database; nothing if another process has locked it, which MLflow waits for."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=READ_TIMEOUT_S)) as database:
            return list(database.execute(query))
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "no such table" in str(error) or "readonly" in str(error):
            return [("1",)] if query.startswith("SELECT 1") else []
        raise TrackingUriError(f"MLflow's database {path} cannot be read: {error}; restore it from a copy") from None
    except sqlite3.DatabaseError as error:
        raise TrackingUriError(f"MLflow's database {path} is damaged: {error}; restore it from a copy") from None


def create_database(path: Path) -> None:
    """Make MLflow's database beside its place and move it there whole; if several commands do, the first one stays."""
    import mlflow

    make_folders(path.parent)
    _delete_leftovers(path)
    with tempfile.TemporaryDirectory(prefix=_prefix(path), dir=path.parent, ignore_cleanup_errors=True) as folder:
        made = Path(folder) / path.name
        client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{made}")
        client.search_experiments(max_results=1)
        with suppress(AttributeError):  # an attribute of MLflow's own: close the file under its temporary name
            client._tracking_client.store.engine.dispose()
        _move_whole(made, path)


def _move_whole(made: Path, path: Path) -> None:
    sync_file(made)
    try:
        os.link(made, path)  # atomic, and never overwrites
    except FileExistsError:
        if is_missing(path):
            os.replace(made, path)
    except OSError:  # a file system without hard links
        if is_missing(path):
            os.replace(made, path)
    sync_folder(path.parent)


def _prefix(path: Path) -> str:
    return f".{path.name}.partial-"


def _delete_leftovers(path: Path) -> None:
    for folder in path.parent.glob(f"{_prefix(path)}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > LEFTOVER_S:
                shutil.rmtree(folder)
