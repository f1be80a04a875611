"""What `presto doctor` does to storage and to MLflow: something is put, found again and removed."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from pipelines.storage.exclusive_create import create_exclusive
from pipelines.storage.filesystem import (
    absolute_uri,
    create_s3_client,
    endpoint,
    open_folder,
)
from pipelines.tracking import client as tracking
from pipelines.tracking.client import TrackingError
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import (
    StoreError,
    read_bytes,
    write_bytes,
)
from presto_core.config.sections import TrackingConfig

CONTENT = b"presto doctor was here"


def check_storage(root: str) -> str:
    """Put, get, list and delete an object below `storage.root`, as every stage does.

    Raises:
        StoreError: one of them is refused, or gives back something else than was put.
    """
    with open_scratch(root) as folder:
        write_bytes(folder, "object", CONTENT)
        if read_bytes(folder, "object") != CONTENT:
            raise StoreError(f"{folder.uri}/object reads back other bytes than were written; do not use this storage")
        listed = [info.base_name for info in folder.list_files()]
        folder.delete_file("object")
        if listed != ["object"] or folder.exists("object"):
            raise StoreError(
                f"{folder.uri} held one object and lists {listed}, or keeps it when it is deleted; use a storage that "
                "tells at once what it holds, without a cache between"
            )
    return f"put, get, list and delete in {root}"


def check_conditional_put(root: str) -> str:
    """Write an object only if it is not there: `If-None-Match: *` on S3, exclusive creation in a folder.

    Raises:
        StoreError: the second of two such writes was done.
    """
    with open_scratch(root) as folder:
        if not create_exclusive(folder, "once", CONTENT):
            raise StoreError(f"{root} refuses a conditional put of a new object; check the rights of these credentials")
        if create_exclusive(folder, "once", CONTENT + b" twice"):
            raise StoreError(
                f"{root} overwrites in spite of If-None-Match: two runs of the same settings at the same time could "
                "replace each other's equal files; start a run once, or use a store that heeds it"
            )
    return (
        "If-None-Match: * refuses the second put" if folder.is_remote else "exclusive creation refuses the second file"
    )


@contextmanager
def open_scratch(root: str) -> Iterator[Folder]:
    """A folder of one's own below a storage root; afterwards all is as before.

    Raises:
        StoreError: see `open_folder`.
    """
    root_folder = open_folder(absolute_uri(root))
    folder = root_folder.child(f"presto-doctor-{secrets.token_hex(6)}")
    with ExitStack() as stack:
        if not root_folder.is_remote:
            stack.enter_context(remove_new_folders(Path(folder.path)))
            stack.callback(shutil.rmtree, folder.path, ignore_errors=True)
        else:
            stack.enter_context(_remove_new_keys(root_folder, folder))
        yield folder


@contextmanager
def remove_new_folders(path: Path) -> Iterator[None]:
    """Remove afterwards those folders on the way to a path, and itself, that were not there and are empty."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    finally:
        for folder in missing:
            with suppress(OSError):  # not made after all, or someone else uses it by now
                folder.rmdir()


@contextmanager
def _remove_new_keys(root_folder: Folder, folder: Folder) -> Iterator[None]:
    """Delete all below `folder`; and the mark of the folder above it, which Arrow sets when it deletes in one."""
    client = create_s3_client(endpoint())
    bucket, _, prefix = root_folder.path.partition("/")

    def list_keys(start: str) -> list[str]:
        response = client.list_objects_v2(Bucket=bucket, Prefix=start)
        return [entry["Key"] for entry in response.get("Contents", ())]

    had_marker = not prefix or f"{prefix}/" in list_keys(f"{prefix}/")
    try:
        yield
    finally:
        with suppress(Exception):  # what was wrong is told already
            remaining = list_keys(folder.path.partition("/")[2])
            for key in remaining if had_marker else [*remaining, f"{prefix}/"]:
                client.delete_object(Bucket=bucket, Key=key)


def check_mlflow(config: TrackingConfig) -> str:
    """Make a run with a metric and an artifact, read both back, and delete it.

    Raises:
        TrackingError: MLflow does not answer, refuses something, or gives back something else.
    """
    with tracking.translate_mlflow_errors(config), ExitStack() as stack:
        used_config = stack.enter_context(_use_database(config))
        client, uri = tracking.create_client(used_config)
        experiment_id = tracking.find_experiment(client, uri, used_config.experiment)
        where = f"experiment {used_config.experiment!r}"
        if experiment_id is None:
            experiment_id = stack.enter_context(_make_experiment(client, uri))
            where += ", which the first stage will make"
        _try_run(client, uri, experiment_id)
    return f"run, metric and artifact in {tracking.strip_password(tracking.tracking_uri(config))}, {where}"


def _try_run(client: Any, uri: str, experiment_id: str) -> None:
    tags = {"presto.doctor": "true", "mlflow.runName": "presto doctor"}
    run = client.create_run(experiment_id, tags=tags)
    with _remove_run_afterwards(client, uri, run), tempfile.TemporaryDirectory() as folder:
        client.log_metric(run.info.run_id, "doctor", 1.5)
        client.log_text(run.info.run_id, CONTENT.decode(), "doctor.txt")
        metric = client.get_run(run.info.run_id).data.metrics.get("doctor")
        copy = Path(client.download_artifacts(run.info.run_id, "doctor.txt", folder)).read_bytes()
        if (metric, copy) != (1.5, CONTENT):
            raise TrackingError(
                f"MLflow at {tracking.strip_password(uri)} gives back another metric or artifact than it was given; "
                "see its server's log, and that its artifact store is the same for all clients"
            )


@contextmanager
def _remove_run_afterwards(client: Any, uri: str, run: Any) -> Iterator[None]:
    """Delete a run and its artifacts afterwards; MLflow keeps the run, hidden, until `mlflow gc`."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    artifact_url = urlparse(run.info.artifact_uri)
    with ExitStack() as stack:
        if artifact_url.scheme in ("", "file"):
            stack.enter_context(remove_new_folders(Path(unquote(artifact_url.path))))
        try:
            yield
        finally:
            with suppress(Exception):  # nothing was stored, or the store went away: the run goes all the same
                get_artifact_repository(run.info.artifact_uri, tracking_uri=uri).delete_artifacts()
            client.set_terminated(run.info.run_id)
            client.delete_run(run.info.run_id)


@contextmanager
def _use_database(config: TrackingConfig) -> Iterator[TrackingConfig]:
    """The configured MLflow; where it is a database file that no stage has made yet, one in a folder that goes away."""
    scheme, _, name = tracking.tracking_uri(config).partition(":///")
    path = Path(name).absolute()
    if scheme != "sqlite" or path.exists():
        yield config
        return
    with remove_new_folders(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="presto-doctor-", dir=path.parent) as folder:
            yield config.model_copy(update={"uri": f"sqlite:///{folder}/mlflow.db"})


@contextmanager
def _make_experiment(client: Any, uri: str) -> Iterator[str]:
    """An experiment under a name of its own: the configured one, once deleted, could not be made again."""
    experiment_id = tracking.create_experiment(client, uri, f"presto-doctor-{secrets.token_hex(6)}")
    try:
        yield experiment_id
    finally:
        client.delete_experiment(experiment_id)
