"""MLflow as the record of runs and the register of artifacts: who made what from what, and how it went."""

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
from pipelines.tracking.tags import (
    PARENT,
    RUN_ID,
    STAGE,
)
from presto_core.artifacts.manifest import (
    Artifact,
    read_git_commit,
)
from presto_core.config.loader import flatten
from presto_core.config.schema import StageConfig
from presto_core.config.sections import TrackingConfig
from presto_core.errors import UserError

HOME = Path(".presto")


@dataclass
class Tracker:
    """MLflow for one command.

    Attributes:
        client: mlflow.MlflowClient.
        uri: tracking URI in use.
        experiment_id: where runs go.
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
        """A run for this run_id: a new one, or the one an interrupted command left; its status is set at the end.

        Args:
            origin: what is a parent and no artifact: the checkpoint of a fork.
            tags: more to say of the run.
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
        """MLflow's id of the run with this run_id; None where there is none."""
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
        TrackingError: it does not answer or refuses the credentials, or the experiment was deleted.
    """
    HOME.mkdir(exist_ok=True)
    client, uri = create_client(config)
    with translate_mlflow_errors(config):
        experiment_id = find_experiment(client, uri, config.experiment) or create_experiment(
            client, uri, config.experiment
        )
    return Tracker(client, uri, experiment_id)


def create_client(config: TrackingConfig) -> tuple[Any, str]:
    """A client of MLflow, and the URI it uses."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would report to its makers what was called
    import mlflow

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    uri = tracking_uri(config)
    return mlflow.MlflowClient(tracking_uri=uri), uri


def find_experiment(client: Any, uri: str, name: str) -> str | None:
    """Id of an experiment; None where there is none of that name.

    Raises:
        TrackingError: it was deleted, and MLflow keeps its name.
    """
    found = client.get_experiment_by_name(name)
    if found and found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"experiment {name!r} of MLflow at {strip_password(uri)} is deleted; choose another tracking.experiment, "
            f"or restore it with: mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return found and str(found.experiment_id)


def create_experiment(client: Any, uri: str, name: str) -> str:
    """Create an experiment, whose files a database keeps under .presto; returns its id."""
    artifact_location = (HOME / "mlartifacts").absolute().as_uri() if uri.startswith("sqlite") else None
    return str(client.create_experiment(name, artifact_location=artifact_location))


@contextmanager
def translate_mlflow_errors(config: TrackingConfig) -> Iterator[None]:
    """Turn what libraries say of MLflow, or better the system below them, into a TrackingError with a mend."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # sqlalchemy, requests and MLflow each have their own
        cause: BaseException = error
        while inner := cause.__cause__ or cause.__context__:
            cause = inner
        message = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
        why, uri = (redact(t) for t in (" ".join(message.split())[:200].rstrip("."), tracking_uri(config)))
        raise TrackingError(f"MLflow at {uri} does not answer: {why}; mend tracking.uri, or leave it empty") from error


def tracking_uri(config: TrackingConfig) -> str:
    """The URI in use: as configured, else MLFLOW_TRACKING_URI, else sqlite under .presto."""
    local = f"sqlite:///{(HOME / 'mlflow.db').absolute()}"
    return config.uri or os.environ.get("MLFLOW_TRACKING_URI") or local


@lru_cache(maxsize=1)
def environment_hash() -> str:
    """sha256 over the names and versions of all installed packages: two runs with the same had the same code around."""
    versions = {(d.metadata["Name"] or "").lower().replace("_", "-"): d.version for d in metadata.distributions()}
    return hashlib.sha256("\n".join(f"{name}=={versions[name]}" for name in sorted(versions)).encode()).hexdigest()


@lru_cache(maxsize=1)
def environment_tags() -> dict[str, str]:
    """Tags of a run that say which code it ran, under MLflow's own name where there is one."""
    commit = read_git_commit()
    return {"presto.environment": environment_hash()} | ({"mlflow.source.git.commit": commit} if commit else {})


def log_parents(client: Any, mlflow_run: str, parents: dict[str, Artifact]) -> None:
    """Tell MLflow which artifacts a run reads: as data sets, by id and place, with their role as context."""
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
