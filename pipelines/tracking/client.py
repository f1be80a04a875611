"""MLflow as the tracker of runs: settings, lineage and metrics of every command."""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from types import MappingProxyType
from typing import Any

from pipelines.cluster.shutdown import StoppedError
from pipelines.console import console
from pipelines.redaction import redact, redact_items
from pipelines.redaction import strip_password as strip_password
from pipelines.storage.filesystem import absolute_uri
from pipelines.tracking.database import MLARTIFACTS, check_database, create_database, is_missing
from pipelines.tracking.run import TrackedRun as TrackedRun
from pipelines.tracking.run import TrackingError as TrackingError
from pipelines.tracking.run import explain_mlflow_error, with_retries
from pipelines.tracking.settings import log_settings
from pipelines.tracking.system_metrics import sample_system_metrics
from pipelines.tracking.tags import PARENT, RUN_ID, STAGE, STORAGE_ROOT
from pipelines.tracking.uri import HOME as HOME
from pipelines.tracking.uri import TrackingUriError, check_uri, sqlite_path, uri_source
from pipelines.tracking.uri import tracking_uri as tracking_uri
from presto_core.artifacts.durable import make_folders
from presto_core.artifacts.manifest import Artifact, read_git_commit
from presto_core.config.sections import TrackingConfig
from presto_core.config.stage import StageConfig
from presto_core.errors import UserError

MAX_NAME = 250  # characters of a run's name in MLflow
MAX_EXPERIMENT_NAME = 500
_shown: set[str] = set()  # tracking URIs of which this process has said how to look at them


@dataclass
class Tracker:
    """The MLflow connection of one command.

    Attributes:
        client: mlflow.MlflowClient.
        uri: tracking URI in use.
        experiment_id: experiment of its runs.
    """

    client: Any
    uri: str
    experiment_id: str

    @contextmanager
    def run(
        self,
        stage: str,
        config: StageConfig,
        run_id: str,
        parents: dict[str, Artifact],
        *,
        origin: Mapping[str, str] = MappingProxyType({}),
        tags: Mapping[str, str] = MappingProxyType({}),
        name: str = "",
    ) -> Iterator[TrackedRun]:
        """Open the MLflow run of this run_id, new or from an interrupted command, and set its status at the end.

        Args:
            origin: parents that are not artifacts: the checkpoint of a fork.
            tags: additional tags of the run.
            name: of the artifact that it makes, for people.
        """
        mlflow_id, start_ms = with_retries(
            lambda: self._open_run(stage, config, run_id, parents, origin=origin, tags=tags, name=name)
        )
        run = TrackedRun(self.client, mlflow_id)
        try:
            with sample_system_metrics(run, start_ms):
                yield run
        except (KeyboardInterrupt, StoppedError):
            run.fail("KILLED")
            raise
        except BaseException:
            run.fail("FAILED")
            raise
        run.finish()

    def find_run(self, run_id: str) -> str | None:
        """Return MLflow's id of the run with this run_id, or None."""
        runs = self.client.search_runs(
            [self.experiment_id], f"tags.`{RUN_ID}` = '{run_id}'", max_results=1, order_by=["attributes.start_time ASC"]
        )
        return str(runs[0].info.run_id) if runs else None

    def find_finished_run(self, run_id: str) -> str | None:
        """Return MLflow's id of the run with this run_id if it is FINISHED there."""
        mlflow_id = self.find_run(run_id)
        return mlflow_id if mlflow_id and self.client.get_run(mlflow_id).info.status == "FINISHED" else None

    def announce(self, mlflow_id: str) -> None:
        """Print once per process where to look at runs."""
        if self.uri in _shown:
            return
        _shown.add(self.uri)
        uri = redact(self.uri)
        page = f"{uri.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{mlflow_id}"
        command = f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
        console.print(f"MLflow: {page if uri.startswith('http') else command}", markup=False)

    def _open_run(
        self,
        stage: str,
        config: StageConfig,
        run_id: str,
        parents: dict[str, Artifact],
        *,
        origin: Mapping[str, str],
        tags: Mapping[str, str],
        name: str,
    ) -> tuple[str, int]:
        """Create the run, or reopen it, and complete what a killed command did not record; safe to repeat."""
        mlflow_id = self.find_run(run_id)
        if mlflow_id is None:
            all_tags = {RUN_ID: run_id, STAGE: stage, **environment_tags()}
            all_tags["mlflow.runName"] = " ".join(filter(None, (stage, name, run_id)))[-MAX_NAME:]
            all_tags[STORAGE_ROOT] = absolute_uri(config.storage.root).removeprefix("file://").rstrip("/")
            ids = {role: artifact.id for role, artifact in parents.items()} | dict(origin)
            all_tags |= {f"{PARENT}{role}": parent for role, parent in ids.items()}
            mlflow_id = str(self.client.create_run(self.experiment_id, tags=redact_items(all_tags)).info.run_id)
        run = self.client.get_run(mlflow_id)
        if run.info.status != "RUNNING":
            self.client.update_run(mlflow_id, status="RUNNING")
        if not run.data.params:
            log_parents(self.client, mlflow_id, parents)
            log_settings(self.client, mlflow_id, config)  # last: a second attempt goes by them
        for key, value in redact_items(tags).items():
            self.client.set_tag(mlflow_id, key, value)
        return mlflow_id, int(run.info.start_time)


def open_tracker(config: TrackingConfig) -> Tracker:
    """Connect to MLflow; without a URI, to a database under .presto.

    Raises:
        TrackingUriError: the URI cannot be MLflow's.
        TrackingError: MLflow does not answer or rejects the credentials, the experiment is deleted, or the database
            was moved or copied with its project.
    """
    check_tracking(config)
    make_folders(HOME)
    client, uri = create_client(config)
    with translate_mlflow_errors(config):
        experiment_id = find_experiment(client, uri, config.experiment) or create_experiment(
            client, uri, config.experiment
        )
    return Tracker(client, uri, experiment_id)


def check_tracking(config: TrackingConfig) -> None:
    """Check what can be checked of `tracking` without MLflow: in milliseconds, before any work.

    Raises:
        TrackingUriError, TrackingError: see `open_tracker`.
    """
    check_uri(tracking_uri(config), uri_source(config))
    length = len(config.experiment.strip())
    if not 0 < length <= MAX_EXPERIMENT_NAME:
        raise TrackingUriError(
            f"tracking.experiment has {length} characters; give it a name of 1 to {MAX_EXPERIMENT_NAME}, such as presto"
        )
    check_database(config)


def create_client(config: TrackingConfig) -> tuple[Any, str]:
    """Create a client of MLflow; return it and its URI. A missing SQLite database is created."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would report API calls to its vendor
    import mlflow

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # it logs a traceback of 70 lines for every attempt on a locked database; the exception says the same
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    uri = tracking_uri(config)
    path = sqlite_path(uri)
    if path and is_missing(path):
        create_database(path)
    return mlflow.MlflowClient(tracking_uri=uri), uri


def find_experiment(client: Any, uri: str, name: str) -> str | None:
    """Return the id of the experiment with this name, or None.

    Raises:
        TrackingError: it is deleted, and MLflow still reserves its name.
    """
    found = client.get_experiment_by_name(name)
    if found and found.lifecycle_stage == "deleted":
        shown = strip_password(uri)
        where = f"MLFLOW_TRACKING_URI={shlex.quote(shown if shown == uri else '...')}"
        raise TrackingError(
            f"experiment {name!r} of MLflow at {shown} is deleted; set another tracking.experiment, or restore it: "
            f"{where} mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return found and str(found.experiment_id)


def create_experiment(client: Any, uri: str, name: str) -> str:
    """Create an experiment and return its id; with a local database, its files are under .presto.

    A project's database, .presto/mlflow.db, has them beside it, whichever folder it is used from.
    """
    path = sqlite_path(uri)
    home = path.parent if path and path.parent.name == HOME.name else HOME.absolute()
    artifact_location = (home / MLARTIFACTS).as_uri() if uri.startswith("sqlite") else None
    return str(client.create_experiment(name, artifact_location=artifact_location))


@contextmanager
def translate_mlflow_errors(config: TrackingConfig) -> Iterator[None]:
    """Convert errors of MLflow, or better of the system below it, to a TrackingError with a fix."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # sqlalchemy, requests and MLflow have no common class
        cause: BaseException = error
        while inner := cause.__cause__ or cause.__context__:
            cause = inner
        known = cause.strerror if isinstance(cause, OSError) else None
        why, uri = known or explain_mlflow_error(error), redact(tracking_uri(config))
        raise TrackingError(f"MLflow at {uri} does not answer: {why}; correct tracking.uri or unset it") from error


def has_registry(config: TrackingConfig) -> bool:
    """Return whether a registry is set or was made here, without opening it: opening creates a database."""
    return bool(config.uri or os.environ.get("MLFLOW_TRACKING_URI")) or (HOME / "mlflow.db").exists()


@lru_cache(maxsize=1)
def environment_hash() -> str:
    """Return the sha256 of the names and versions of all installed packages, which identifies the environment."""
    versions = {(d.metadata["Name"] or "").lower().replace("_", "-"): d.version for d in metadata.distributions()}
    return hashlib.sha256("\n".join(f"{name}=={versions[name]}" for name in sorted(versions)).encode()).hexdigest()


@lru_cache(maxsize=1)
def environment_tags() -> dict[str, str]:
    """Return the tags that identify a run's code, with MLflow's own name for the commit."""
    commit = read_git_commit()
    return {"presto.environment": environment_hash()} | ({"mlflow.source.git.commit": commit} if commit else {})


def log_parents(client: Any, mlflow_run: str, parents: dict[str, Artifact]) -> None:
    """Log a run's input artifacts to MLflow as data sets, with id, URI, and role as context."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    from pipelines.redaction import redact

    inputs = [
        DatasetInput(
            Dataset(
                name=f"presto-{artifact.kind}",
                digest=artifact.id,
                source_type="s3" if artifact.uri.startswith("s3://") else "local",
                source=redact(f'{{"uri": "{artifact.uri}"}}'),
            ),
            [InputTag("mlflow.data.context", role)],
        )
        for role, artifact in parents.items()
    ]
    if inputs:
        client.log_inputs(mlflow_run, datasets=inputs)
