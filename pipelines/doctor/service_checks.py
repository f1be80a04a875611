"""Checks of storage and MLflow for `presto doctor`: each writes something, reads it back and removes it."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from pipelines.stages.resources import SkippedError
from pipelines.storage.exclusive_create import create_exclusive
from pipelines.storage.filesystem import absolute_uri, open_folder
from pipelines.storage.s3_clients import create_s3_client
from pipelines.storage.s3_session import find_credentials
from pipelines.storage.s3_settings import load_settings
from pipelines.storage.s3_uri import is_s3_uri
from pipelines.tracking import client as tracking
from pipelines.tracking.client import TrackingError
from presto_core.artifacts.durable import make_folders
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import StoreError, read_bytes, write_bytes
from presto_core.config.sections import TrackingConfig

CONTENT = b"presto doctor was here"


def check_s3_settings(uris: Sequence[str]) -> str:
    """Return the settings that every S3 client uses, and where its credentials come from, but no secret.

    Raises:
        StoreError: a setting is invalid, or not every client can obey it.
        SkippedError: no object store is used.
    """
    if not any(map(is_s3_uri, uris)):
        raise SkippedError("not needed: storage.root and ingest.source are folders")
    credentials = find_credentials()
    return f"{load_settings().describe()}, credentials {describe_origin(credentials)}"


def describe_origin(credentials: Any) -> str:
    """Return where boto3 found credentials."""
    if credentials is None:
        return "none"
    known = {"env": "from AWS_ACCESS_KEY_ID", "shared-credentials-file": "from the credentials file"}
    return known.get(credentials.method, f"by {credentials.method}")


def check_storage(root: str) -> str:
    """Put, get, list and delete an object below `storage.root`, as every stage does.

    Raises:
        StoreError: an operation is refused, or returns something other than was written.
    """
    with open_scratch(root) as folder:
        write_bytes(folder, "object", CONTENT)
        if read_bytes(folder, "object") != CONTENT:
            raise StoreError(f"{folder.uri}/object reads back other bytes than were written; do not use this storage")
        listed = [info.base_name for info in folder.list_files()]
        folder.delete_file("object")
        if listed != ["object"] or folder.exists("object"):
            raise StoreError(
                f"{folder.uri} held one object and lists {listed}, or keeps it after deletion; use consistent "
                "storage, without a cache in front"
            )
    return f"put, get, list and delete in {root}"


def check_conditional_put(root: str) -> str:
    """Write an object only if it is not there: `If-None-Match: *` on S3, exclusive creation in a folder.

    Raises:
        StoreError: the first write is refused, or the second one is not.
    """
    with open_scratch(root) as folder:
        if not create_exclusive(folder, "once", CONTENT):
            raise StoreError(
                f"{root} refuses a conditional put of a new object; check the permissions of these credentials"
            )
        if create_exclusive(folder, "once", CONTENT + b" twice"):
            raise StoreError(
                f"{root} ignores If-None-Match: two runs of the same settings at the same time can replace each "
                "other's equal files; start a run only once, or use a store that supports If-None-Match"
            )
    return (
        "If-None-Match: * refuses the second put" if folder.is_remote else "exclusive creation refuses the second file"
    )


@contextmanager
def open_scratch(root: str) -> Iterator[Folder]:
    """Open a temporary folder below a storage root, and remove it afterwards.

    Raises:
        StoreError: see `open_folder`.
    """
    root_folder = open_folder(absolute_uri(root), setting="storage.root")
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
    """Afterwards remove a path and its parents, if they did not exist before and are empty."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    finally:
        for folder in missing:
            with suppress(OSError):  # never created, or in use by someone else
                folder.rmdir()


@contextmanager
def _remove_new_keys(root_folder: Folder, folder: Folder) -> Iterator[None]:
    """Afterwards delete all keys below `folder`, and the marker of its parent that Arrow creates on deletion."""
    client = create_s3_client()
    bucket, _, prefix = root_folder.path.partition("/")

    def list_keys(start: str) -> list[str]:
        response = client.list_objects_v2(Bucket=bucket, Prefix=start)
        return [entry["Key"] for entry in response.get("Contents", ())]

    had_marker = not prefix or f"{prefix}/" in list_keys(f"{prefix}/")
    try:
        yield
    finally:
        with suppress(Exception):  # the error that matters is already raised
            remaining = list_keys(folder.path.partition("/")[2])
            for key in remaining if had_marker else [*remaining, f"{prefix}/"]:
                client.delete_object(Bucket=bucket, Key=key)


def check_mlflow(config: TrackingConfig) -> str:
    """Create a run with a metric and an artifact, read both back, and delete the run.

    Raises:
        TrackingError: MLflow does not answer, refuses a request, or returns something other than was logged.
    """
    tracking.check_tracking(config)
    with tracking.translate_mlflow_errors(config), ExitStack() as stack:
        used_config = stack.enter_context(_use_database(config))
        client, uri = tracking.create_client(used_config)
        experiment_id = tracking.find_experiment(client, uri, used_config.experiment)
        where = f"experiment {used_config.experiment!r}"
        if experiment_id is None:
            experiment_id = stack.enter_context(_make_experiment(client, uri))
            where += ", which the first stage will create"
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
                f"MLflow at {tracking.strip_password(uri)} returns another metric or artifact than was logged; "
                "check its server's log, and that its artifact store is the same for all clients"
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
            with suppress(Exception):  # nothing was stored, or the store is gone: delete the run anyway
                get_artifact_repository(run.info.artifact_uri, tracking_uri=uri).delete_artifacts()
            client.set_terminated(run.info.run_id)
            client.delete_run(run.info.run_id)


@contextmanager
def _use_database(config: TrackingConfig) -> Iterator[TrackingConfig]:
    """Yield the configured MLflow, or one in a temporary folder if its database file does not exist yet."""
    scheme, _, name = tracking.tracking_uri(config).partition(":///")
    path = Path(name).absolute()
    if scheme != "sqlite" or path.exists():
        yield config
        return
    with remove_new_folders(path.parent):
        make_folders(path.parent)
        with tempfile.TemporaryDirectory(prefix="presto-doctor-", dir=path.parent) as folder:
            yield config.model_copy(update={"uri": f"sqlite:///{folder}/mlflow.db"})


@contextmanager
def _make_experiment(client: Any, uri: str) -> Iterator[str]:
    """Create a temporary experiment under its own name: the configured one could not be created again once deleted."""
    experiment_id = tracking.create_experiment(client, uri, f"presto-doctor-{secrets.token_hex(6)}")
    try:
        yield experiment_id
    finally:
        client.delete_experiment(experiment_id)
