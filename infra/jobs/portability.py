"""Checks that the settings of a job work on the nodes of a cluster and contain no secrets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from infra.jobs.targets import Target, is_loopback_url
from pipelines.redaction import strip_password
from pipelines.stages.table import OWN_FOLDERS, STAGES
from presto_core.config.loader import flatten
from presto_core.config.stage import StageConfig
from presto_core.config.submit import SECRET_NAME
from presto_core.errors import UserError
from presto_core.models.pretrained import find_pretrained

MIN_SECRET_LENGTH = 8  # characters; shorter values match by chance

Stage = TypeVar("Stage", bound=StageConfig)


def freeze_config(stage: str, config: Stage) -> Stage:
    """Return the settings to send: with the MLflow server of this environment, without `cluster.address`.

    Raises:
        UserError: `cluster.address` names another cluster than `--on`, or no MLflow server is set.
    """
    if config.cluster.address not in ("", "auto"):
        raise UserError(
            f"cluster.address={config.cluster.address} and --on both name a cluster; leave cluster.address empty: "
            "the job joins the cluster it runs on"
        )
    uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if STAGES[stage].uses_storage and not uri and not reads_package_only(stage, config):
        raise UserError(
            "tracking.uri is empty, so the run would be recorded on the node's disk only; set a server that the "
            "cluster can reach (tracking.uri=https://… or MLFLOW_TRACKING_URI)"
        )
    cluster = config.cluster.model_copy(update={"address": ""})
    return config.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": uri}), "cluster": cluster})


def check_reachable(stage: str, config: StageConfig, target: Target) -> None:
    """Reject settings that exist on this machine only.

    Args:
        config: as returned by `freeze_config`.

    Raises:
        UserError: names the setting, its value, and an alternative.
    """
    for key, uri in iter_config_uris(stage, config):
        if _is_path(uri):
            _check_shared(stage, key, uri, config)
        elif uri.startswith(("http://", "https://")) and is_loopback_url(uri) and not target.is_this_machine:
            raise UserError(f"{key}={uri} is a server on this machine, which the cluster cannot reach; set another")
        elif uri.startswith("s3://") and not target.is_this_machine:
            _check_endpoint_is_remote(key, uri)
    uri = config.tracking.uri
    if uri.startswith(("sqlite:", "file:", "mysql:", "postgresql:")) or (uri and _is_path(uri)):
        raise UserError(
            f"tracking.uri={strip_password(uri)} is not a server, so each node would have its own database; set one "
            "that the cluster can reach (https://…)"
        )


def reads_package_only(stage: str, config: StageConfig) -> bool:
    """Whether a stage needs neither MLflow nor storage: it makes no artifact, and its inputs come with the package."""
    references = config.references().values()
    return not STAGES[stage].writes_run and bool(references) and all(map(find_pretrained, references))


def check_no_secrets(text: str) -> None:
    """Reject text that contains a secret of this environment, or a password in a URI.

    Args:
        text: everything that is sent to the cluster: settings and command line.

    Raises:
        UserError: names the source of the secret, not its value.
    """
    for part in text.split():
        if strip_password(part) != part:
            raise UserError(
                f"the settings contain a password ({strip_password(part)}), and everyone who sees the dashboard can "
                "read them; remove it and set it on the nodes (MLFLOW_TRACKING_USERNAME and …_PASSWORD, or AWS_…)"
            )
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and len(value) >= MIN_SECRET_LENGTH and value in text:
            raise UserError(f"the settings contain the value of {name}; remove it and set {name} on the nodes")


def iter_config_uris(stage: str, config: StageConfig) -> Iterator[tuple[str, str]]:
    """Yield key and value of each setting of a stage that holds a path or URI."""
    uses_storage = STAGES[stage].uses_storage and not reads_package_only(stage, config)
    flat = flatten(config.model_dump(mode="json", exclude=set() if uses_storage else {"storage"}))
    for key in ("storage.root", *OWN_FOLDERS, *STAGES[stage].input_paths, *STAGES[stage].output_paths):
        value = flat.get(key) or []
        yield from ((key, str(uri)) for uri in (value if isinstance(value, list) else [value]))
        yield from ((inner, str(uri)) for inner, uri in flat.items() if inner.startswith(f"{key}."))
    if config.tracking.uri:
        yield "tracking.uri", config.tracking.uri if "://" in config.tracking.uri else ""
    yield from ((f"inputs.{role}", uri) for role, uri in config.references().items() if "/" in uri)


def _is_path(uri: str) -> bool:
    return bool(uri) and ("://" not in uri or uri.startswith("file://"))


def _check_shared(stage: str, key: str, uri: str, config: StageConfig) -> None:
    """Check that a path is in a folder that all nodes share or, if it is an input, in the folder that is sent."""
    path, sent = Path(os.path.normpath(uri.removeprefix("file://"))), config.submit.working_dir
    if any(path.is_absolute() and path.is_relative_to(folder) for folder in config.submit.shared_folders):
        return
    if sent and _is_input(stage, key) and not path.is_absolute() and (Path(sent) / path).exists():
        return
    where = "s3://bucket/prefix, or a" if key not in STAGES[stage].output_paths else "a"
    brought = ", or send it along with submit.working_dir" if _is_input(stage, key) else ""
    raise UserError(
        f"{key}={uri} exists on this machine only; use {where} folder that every node mounts and "
        f"submit.shared_folders lists{brought}"
    )


def _is_input(stage: str, key: str) -> bool:
    return any(key == path or key.startswith(f"{path}.") for path in (*STAGES[stage].input_paths, *OWN_FOLDERS))


def _check_endpoint_is_remote(key: str, uri: str) -> None:
    from pipelines.storage.s3_settings import endpoint

    url = endpoint()
    if url and is_loopback_url(url):
        raise UserError(
            f"{key}={uri} is in the object store {url} on this machine, which the cluster cannot reach; use one that "
            "both can reach, and set AWS_ENDPOINT_URL to it here and on the nodes"
        )
