"""How tests are run, and fixtures of real things: a folder, a real S3 server, a real MLflow server, a Ray session."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipelines.storage import filesystem as storage
from pipelines.storage import local_s3
from pipelines.storage.local_s3 import Server
from tests.servers.mlflow_server import MlflowServer

torch.set_num_threads(1)  # two cores are shared with Ray's workers
pytest_plugins = ["tests.support.distribution", "tests.support.signals"]


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count and list the tests that failed and were run again (`--reruns`), whatever became of them."""
    if terminalreporter.config.getoption("reruns", None):
        names = sorted({report.nodeid for report in terminalreporter.getreports("rerun")})
        terminalreporter.section("reruns")
        for line in (f"{len(names)} tests were rerun{':' if names else ''}", *names):
            terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def cache_of_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Copies of what object storage holds are kept in a folder of the tests' own."""
    os.environ["PRESTO_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody cuts the power during tests, and waiting for the disk would take minutes (tests/support/power_cuts.py)."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, with no tracking or storage settings inherited."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def workdir(empty: Path, mlflow_database: Path) -> Path:
    """A current folder in which nothing was done yet but to make MLflow's data base."""
    (empty / ".presto").mkdir()
    shutil.copy(mlflow_database, ".presto/mlflow.db")
    return empty


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A SeaweedFS server with the bucket `latents`; the environment points at it."""
    folder = tmp_path_factory.mktemp("object_store")
    server, _ = local_s3.start(folder)
    before = dict(os.environ)
    os.environ.update(server.environment())
    storage.create_bucket("latents")
    yield server
    local_s3.stop(folder)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data base of MLflow's in which nothing was done yet, to be copied: making its tables takes seconds."""
    import mlflow

    path = tmp_path_factory.mktemp("mlflow_database") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def mlflow_server(mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow")
    shutil.copy(mlflow_database, folder)
    server = MlflowServer(folder, f"sqlite:///{folder}/mlflow.db", str(folder / "files"))
    server.start()
    yield server.uri
    server.kill()


@pytest.fixture(scope="session")
def shared_ray(object_store: Server) -> Iterator[None]:
    """One Ray session that the tests share; started after the object store, so that workers know its address."""
    from pipelines.cluster.session import ray_session
    from presto_core.config.sections import ClusterConfig

    with ray_session(ClusterConfig(cpus=2, object_store_mb=200), cpus=1):
        yield
