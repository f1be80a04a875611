"""What a job would not find where it runs: folders and servers of this machine; and what it must not tell."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from infra.jobs.targets import Target, is_loopback_url
from pipelines.redaction import strip_password
from presto_core.config.loader import flatten
from presto_core.config.schema import StageConfig
from presto_core.config.submit import SECRET_NAME
from presto_core.errors import UserError

# settings that hold paths or URIs; those that are read may also come with submit.working_dir
INPUT_KEYS = ("ingest.source", "ingest.manifest", "codec.path", "text.path")
OUTPUT_KEYS = ("storage.root", "corpus.folder", "generate.output")
LOCAL_STAGES = ("corpus",)  # stages that neither storage nor tracking has to do with
MIN_SECRET_LENGTH = 8  # characters; shorter values of the environment occur by chance

Stage = TypeVar("Stage", bound=StageConfig)


def freeze_config(stage: str, config: Stage) -> Stage:
    """The settings as they are sent: with the MLflow server of this environment, and without what only works here.

    Raises:
        UserError: `cluster.address` names another cluster than `--on`; or no MLflow server is named.
    """
    if config.cluster.address not in ("", "auto"):
        raise UserError(
            f"cluster.address={config.cluster.address} and --on both name a cluster; leave cluster.address empty, the "
            "job joins the one that it runs on"
        )
    uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if stage not in LOCAL_STAGES and not uri:
        raise UserError(
            "tracking.uri is empty, so that the run would be recorded on the node's disk only; give a server that the "
            "cluster reaches (tracking.uri=https://… or MLFLOW_TRACKING_URI)"
        )
    cluster = config.cluster.model_copy(update={"address": ""})
    return config.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": uri}), "cluster": cluster})


def check_reachable(stage: str, config: StageConfig, target: Target) -> None:
    """Refuse what exists on this machine only.

    Args:
        config: `frozen`.

    Raises:
        UserError: names the setting, its value, and where else to put it.
    """
    for key, uri in configured_uris(stage, config):
        if _is_path(uri):
            _check_shared(key, uri, config)
        elif uri.startswith(("http://", "https://")) and is_loopback_url(uri) and not target.is_this_machine:
            raise UserError(f"{key}={uri} is a server of this machine, which the cluster cannot reach; name another")
        elif uri.startswith("s3://") and not target.is_this_machine:
            _check_endpoint_is_remote(key, uri)
    uri = config.tracking.uri
    if uri.startswith(("sqlite:", "file:", "mysql:", "postgresql:")) or (uri and _is_path(uri)):
        raise UserError(
            f"tracking.uri={strip_password(uri)} is no server, and would be another data base on each node; give one "
            "that the cluster reaches (https://…)"
        )


def check_no_secrets(text: str) -> None:
    """Refuse to send what a secret of this environment, or a password in a URI, would be part of.

    Args:
        said: all text that goes to the cluster: settings, command line.

    Raises:
        UserError: names where it comes from, not what it is.
    """
    for word in text.split():
        if strip_password(word) != word:
            raise UserError(
                f"the settings hold a password, in {strip_password(word)}; all who see the dashboard can read a "
                "job's settings: leave it out and give it to the nodes (MLFLOW_TRACKING_USERNAME, …_PASSWORD; AWS_…)"
            )
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and len(value) >= MIN_SECRET_LENGTH and value in text:
            raise UserError(f"the settings hold the value of {name}; leave it out, and set {name} on the nodes")


def configured_uris(stage: str, config: StageConfig) -> Iterator[tuple[str, str]]:
    """Key and value of every setting of a stage that names a place."""
    flat = flatten(config.model_dump(mode="json", exclude={"storage"} if stage in LOCAL_STAGES else set()))
    for key in (*INPUT_KEYS, *OUTPUT_KEYS):
        value = flat.get(key) or []
        yield from ((key, str(uri)) for uri in (value if isinstance(value, list) else [value]))
    if config.tracking.uri:
        yield "tracking.uri", config.tracking.uri if "://" in config.tracking.uri else ""
    yield from ((f"inputs.{role}", uri) for role, uri in config.references().items() if "/" in uri)


def _is_path(uri: str) -> bool:
    return bool(uri) and ("://" not in uri or uri.startswith("file://"))


def _check_shared(key: str, uri: str, config: StageConfig) -> None:
    """A path must lie in a folder that all nodes share, or, where it is read, in what is sent along."""
    path, sent = Path(os.path.normpath(uri.removeprefix("file://"))), config.submit.working_dir
    if any(path.is_absolute() and path.is_relative_to(folder) for folder in config.submit.shared_folders):
        return
    if sent and key in INPUT_KEYS and not path.is_absolute() and (Path(sent) / path).exists():
        return
    where = "s3://bucket/prefix, or a" if key not in ("corpus.folder", "generate.output") else "a"
    brought = ", or send it along with submit.working_dir" if key in INPUT_KEYS else ""
    raise UserError(
        f"{key}={uri} exists on this machine only; give {where} folder that every node mounts and "
        f"submit.shared_folders names{brought}"
    )


def _check_endpoint_is_remote(key: str, uri: str) -> None:
    from pipelines.storage.filesystem import endpoint

    url = endpoint()
    if url and is_loopback_url(url):
        raise UserError(
            f"{key}={uri} lies in the object store {url} of this machine, which the cluster cannot reach; use one that "
            "both reach, and name it by AWS_ENDPOINT_URL here and on the nodes"
        )
