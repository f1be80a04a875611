"""MLflow as the tracker of runs: settings, lineage and metrics of every command."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipelines.cluster.shutdown import StoppedError
from pipelines.redaction import redact, redact_items
from pipelines.redaction import strip_password as strip_password
from pipelines.tracking.run import TrackedRun as TrackedRun
from pipelines.tracking.run import TrackingError as TrackingError
from pipelines.tracking.system_metrics import sample_system_metrics
from pipelines.tracking.tags import PARENT, RUN_ID, STAGE
from presto_core.artifacts.manifest import Artifact, read_git_commit
from presto_core.config.loader import flatten
from presto_core.config.sections import TrackingConfig
from presto_core.config.stage import StageConfig
from presto_core.errors import UserError

HOME = Path(".presto")


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
    ) -> Iterator[TrackedRun]:
        """Open the MLflow run of this run_id, new or from an interrupted command, and set its status at the end.

        Args:
            origin: parents that are not artifacts: the checkpoint of a fork.
            tags: additional tags of the run.
        """
        mlflow_id = self.find_run(run_id)
        if mlflow_id:
            self.client.update_run(mlflow_id, status="RUNNING")
        else:
            mlflow_id = self._create_run(stage, config, run_id, parents, origin)
        for name, value in tags.items():
            self.client.set_tag(mlflow_id, name, value)
        run = TrackedRun(self.client, mlflow_id)
        try:
            with sample_system_metrics(run, self.client.get_run(mlflow_id).info.start_time):
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

    def _create_run(
        self, stage: str, config: StageConfig, run_id: str, parents: dict[str, Artifact], origin: Mapping[str, str]
    ) -> str:
        from mlflow.entities import Param

        tags = {RUN_ID: run_id, STAGE: stage, "mlflow.runName": f"{stage}-{run_id}", **environment_tags()}
        ids = {role: artifact.id for role, artifact in parents.items()} | dict(origin)
        tags |= {f"{PARENT}{role}": parent for role, parent in ids.items()}
        info = self.client.create_run(self.experiment_id, tags=redact_items(tags)).info
        flat = flatten(config.model_dump(mode="json", exclude={"storage", "tracking", "submit"}))
        values = redact_items({key: v if isinstance(v, str) else json.dumps(v) for key, v in flat.items()})
        params = [Param(key, value) for key, value in values.items()]
        for start in range(0, len(params), 100):
            self.client.log_batch(info.run_id, params=params[start : start + 100])
        log_parents(self.client, info.run_id, parents)
        return str(info.run_id)


def open_tracker(config: TrackingConfig) -> Tracker:
    """Connect to MLflow; without a URI, to a database under .presto.

    Raises:
        TrackingError: MLflow does not answer or rejects the credentials, or the experiment is deleted.
    """
    HOME.mkdir(exist_ok=True)
    client, uri = create_client(config)
    with translate_mlflow_errors(config):
        experiment_id = find_experiment(client, uri, config.experiment) or create_experiment(
            client, uri, config.experiment
        )
    return Tracker(client, uri, experiment_id)


def create_client(config: TrackingConfig) -> tuple[Any, str]:
    """Create a client of MLflow; return it and its URI."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would report API calls to its vendor
    import mlflow

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    uri = tracking_uri(config)
    return mlflow.MlflowClient(tracking_uri=uri), uri


def find_experiment(client: Any, uri: str, name: str) -> str | None:
    """Return the id of the experiment with this name, or None.

    Raises:
        TrackingError: it is deleted, and MLflow still reserves its name.
    """
    found = client.get_experiment_by_name(name)
    if found and found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"experiment {name!r} of MLflow at {strip_password(uri)} is deleted; set another tracking.experiment, "
            f"or restore it: mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return found and str(found.experiment_id)


def create_experiment(client: Any, uri: str, name: str) -> str:
    """Create an experiment and return its id; with a local database, its files are under .presto."""
    artifact_location = (HOME / "mlartifacts").absolute().as_uri() if uri.startswith("sqlite") else None
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
        message = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
        why, uri = (redact(t) for t in (" ".join(message.split())[:200].rstrip("."), tracking_uri(config)))
        raise TrackingError(f"MLflow at {uri} does not answer: {why}; correct tracking.uri or unset it") from error


def tracking_uri(config: TrackingConfig) -> str:
    """Return the URI in use: tracking.uri, otherwise MLFLOW_TRACKING_URI, otherwise sqlite under .presto."""
    local = f"sqlite:///{(HOME / 'mlflow.db').absolute()}"
    return config.uri or os.environ.get("MLFLOW_TRACKING_URI") or local


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
