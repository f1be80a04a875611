"""MLflow as the record of runs and the register of artifacts: who made what from what, and how it went."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.stopping import StoppedError
from pipelines.storage import open_folder
from pipelines.tracked import TrackedRun as TrackedRun
from pipelines.tracked import TrackingError as TrackingError
from pipelines.tracked import without_password as without_password
from presto_core.config.loader import flatten
from presto_core.config.schema import StageConfig
from presto_core.config.sections import TrackingConfig
from presto_core.registry.manifest import Artifact, artifact_folder, read_artifact

HOME = Path(".presto")
RUN_ID, ARTIFACT_URI, ARTIFACT_ID = "presto.run_id", "presto.artifact_uri", "presto.artifact_id"
CANDIDATE = "candidate"  # the alias every new version gets


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
    def run(self, stage: str, config: StageConfig, run_id: str, parents: dict[str, str]) -> Iterator[TrackedRun]:
        """A run for this run_id: a new one, or the one an interrupted command left; its status is set at the end."""
        found = self.client.search_runs(
            [self.experiment_id], f"tags.`{RUN_ID}` = '{run_id}'", max_results=1, order_by=["attributes.start_time ASC"]
        )
        if found:
            mlflow_id = found[0].info.run_id
            self.client.update_run(mlflow_id, status="RUNNING")
        else:
            mlflow_id = self._create(stage, config, run_id, parents)
        run = TrackedRun(self.client, mlflow_id)
        try:
            yield run
        except (KeyboardInterrupt, StoppedError):
            run.give_up("KILLED")
            raise
        except BaseException:
            run.give_up("FAILED")
            raise
        run.finish()

    def _create(self, stage: str, config: StageConfig, run_id: str, parents: dict[str, str]) -> str:
        from mlflow.entities import Param

        tags = {RUN_ID: run_id, "presto.stage": stage, "mlflow.runName": f"{stage}-{run_id}"}
        tags |= {f"presto.parent.{role}": artifact_id for role, artifact_id in parents.items()}
        mlflow_id: str = self.client.create_run(self.experiment_id, tags=tags).info.run_id
        flat = flatten(config.model_dump(mode="json", exclude={"storage", "tracking", "submit"}))
        params = [Param(key, v if isinstance(v, str) else json.dumps(v)) for key, v in flat.items()]
        for start in range(0, len(params), 100):
            self.client.log_batch(mlflow_id, params=params[start : start + 100])
        return mlflow_id

    def register(self, name: str, artifact: Artifact, run: TrackedRun) -> int:
        """Make an artifact findable as `name@candidate`; a version that exists is used again. Returns its number."""
        import mlflow.exceptions

        try:
            self.client.create_registered_model(name)
        except mlflow.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = self.client.search_model_versions(f"name = '{name}' and tags.`{ARTIFACT_ID}` = '{artifact.id}'")
        if known:
            version = int(known[0].version)
        else:
            self.client.log_dict(run.mlflow_id, artifact.manifest, "artifact/manifest.json")
            tags = {ARTIFACT_ID: artifact.id, ARTIFACT_URI: artifact.uri, "presto.kind": artifact.kind}
            source = f"runs:/{run.mlflow_id}/artifact"
            created = self.client.create_model_version(name, source=source, run_id=run.mlflow_id, tags=tags)
            version = int(created.version)
        self.client.set_registered_model_alias(name, CANDIDATE, str(version))
        return version

    def resolve(self, reference: str, storage_root: str) -> Artifact:
        """An artifact by registry name (`presto-generator@candidate`), id, or URI.

        Raises:
            TrackingError: no such name or alias; the known ones are listed.
            StoreError: the artifact is missing or damaged.
        """
        if "/" in reference:
            return read_artifact(open_folder(reference))
        if re.fullmatch(r"[0-9a-f]{16}", reference):
            return read_artifact(artifact_folder(open_folder(storage_root), reference))
        name, _, alias = reference.partition("@")
        return read_artifact(open_folder(self._uri_of(name, alias or CANDIDATE)))

    def _uri_of(self, name: str, alias: str) -> str:
        import mlflow.exceptions

        try:
            version = self.client.get_model_version_by_alias(name, alias)
        except mlflow.exceptions.MlflowException:
            models = self.client.search_registered_models()
            known = ", ".join(sorted(f"{m.name}@{a}" for m in models for a in m.aliases)) or "nothing yet"
            raise TrackingError(
                f"the registry at {without_password(self.uri)} has no {name}@{alias}; it has {known}. "
                "Run the stage that makes it, or give an artifact's id or URI"
            ) from None
        return str(version.tags[ARTIFACT_URI])


def open_tracker(config: TrackingConfig) -> Tracker:
    """Connect to MLflow; without a URI, to a database under .presto.

    Raises:
        TrackingError: it does not answer or refuses the credentials, or the experiment was deleted.
    """
    HOME.mkdir(exist_ok=True)
    client, uri = connect(config)
    with answering(config):
        experiment_id = experiment(client, uri, config.experiment) or new_experiment(client, uri, config.experiment)
    return Tracker(client, uri, experiment_id)


def connect(config: TrackingConfig) -> tuple[Any, str]:
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


def experiment(client: Any, uri: str, name: str) -> str | None:
    """Id of an experiment; None where there is none of that name.

    Raises:
        TrackingError: it was deleted, and MLflow keeps its name.
    """
    found = client.get_experiment_by_name(name)
    if found and found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"experiment {name!r} of MLflow at {without_password(uri)} is deleted; choose another tracking.experiment, "
            f"or restore it with: mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return found and str(found.experiment_id)


def new_experiment(client: Any, uri: str, name: str) -> str:
    """Create an experiment, whose files a database keeps under .presto; returns its id."""
    place = (HOME / "mlartifacts").absolute().as_uri() if uri.startswith("sqlite") else None
    return str(client.create_experiment(name, artifact_location=place))


@contextmanager
def answering(config: TrackingConfig) -> Iterator[None]:
    """Turn what libraries say of MLflow, or better the system below them, into a TrackingError with a mend."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:  # sqlalchemy, requests and MLflow each have their own
        first: BaseException = error
        while inner := first.__cause__ or first.__context__:
            first = inner
        said = first.strerror if isinstance(first, OSError) and first.strerror else str(error)
        why, uri = (without_password(t) for t in (" ".join(said.split())[:200].rstrip("."), tracking_uri(config)))
        raise TrackingError(f"MLflow at {uri} does not answer: {why}; mend tracking.uri, or leave it empty") from error


def tracking_uri(config: TrackingConfig) -> str:
    """The URI in use: as configured, else MLFLOW_TRACKING_URI, else sqlite under .presto."""
    local = f"sqlite:///{(HOME / 'mlflow.db').absolute()}"
    return config.uri or os.environ.get("MLFLOW_TRACKING_URI") or local
