"""Fixtures of real things: a working folder, a real S3 server, a real Ray session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipelines import embedded_s3, storage
from pipelines.embedded_s3 import Server

torch.set_num_threads(1)  # two cores are shared with Ray's workers


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, with no tracking or storage settings inherited."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A SeaweedFS server with the bucket `latents`; the environment points at it."""
    folder = tmp_path_factory.mktemp("object_store")
    server, _ = embedded_s3.start(folder)
    before = dict(os.environ)
    os.environ.update(server.environment())
    storage.create_bucket("latents")
    yield server
    embedded_s3.stop(folder)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def ray_here(object_store: Server) -> Iterator[None]:
    """One Ray session that the tests share; started after the object store, so that workers know its address."""
    from pipelines.cluster import ray_session
    from presto_core.config.sections import ClusterConfig

    with ray_session(ClusterConfig(cpus=2, object_store_mb=200), cpus=1):
        yield
