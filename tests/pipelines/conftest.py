"""Fixtures of the tests that start, kill and end real processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.servers.mlflow_server import MlflowServer
from tests.support.fault_runs import Parents, Training, write_table
from tests.support.processes import Attempt
from tests.support.small_versions import SmallRegistry, make_shared_registry
from tests.support.synthetic_dataset import make_dataset
from tests.support.tiny_registry import TinyRegistry, make_tiny_registry

CHAOS_PAGE = "CHAOS_PAGE"  # environment variable: page that gets the measured table


@pytest.fixture
def begin() -> Iterator[Callable[..., Attempt]]:
    """Start attempts; none outlives its test."""
    begun: list[Attempt] = []

    def start(command: list[str], cwd: Path, environment: Mapping[str, str] | None = None, **how: bool) -> Attempt:
        cwd.mkdir(exist_ok=True)
        begun.append(Attempt(command, cwd, environment or {}, **how))
        return begun[-1]

    yield start
    for attempt in begun:
        attempt.look()
        attempt.end(patience_s=0)


@pytest.fixture
def own_mlflow(mlflow_database: Path, tmp_path: Path) -> Iterator[MlflowServer]:
    """A server of one test, which may kill and restart it."""
    database = tmp_path / "served.db"
    database.write_bytes(mlflow_database.read_bytes())
    made = MlflowServer(tmp_path, f"sqlite:///{database}", str(tmp_path / "files"))
    made.start()
    yield made
    made.kill()


@pytest.fixture(scope="session")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parents]:
    """A data set, a teacher and a layer-distilled model to start runs from; at the end, writes the fault table."""
    folder, before = tmp_path_factory.mktemp("parents"), Path.cwd()
    data = Parents(make_dataset(str(folder / "data")).uri)
    teacher = Training("teacher", folder, data, steps=8, settings={"network.depth": 3}).finish_in_process()
    base = Parents(data.dataset, teacher.uri)
    layers = Training("L", folder, base, steps=8).finish_in_process()
    os.chdir(before)
    yield Parents(data.dataset, teacher.uri, layers.uri)
    if page := os.environ.get(CHAOS_PAGE):
        write_table(before / page)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyRegistry]:
    """A registry with five artifacts on a database and a folder, made once."""
    folder, before = tmp_path_factory.mktemp("registry"), Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        os.chdir(folder)
        made = make_tiny_registry(str(folder / "store"))
        made.add_report(made.made["S"], made.made["LS"], worse=(0.6, 0.4))
        os.chdir(before)
        yield made


@pytest.fixture
def in_registry_folder(home: TinyRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(Path(home.root).parent)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> SmallRegistry:
    """A registry of small made-up versions, in an MLflow that another tool uses too."""
    folder = tmp_path_factory.mktemp("shelf")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        return make_shared_registry(str(folder / "store"))


@pytest.fixture
def in_shelf_folder(shelf: SmallRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(Path(shelf.root).parent)


@pytest.fixture
def copy(home: TinyRegistry, tmp_path: Path) -> Path:
    """A copy of a registered artifact's folder, to damage."""
    shutil.copytree(home.made["S"].uri, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(autouse=True)
def _same_folder() -> Iterator[None]:
    """Restore the working directory after each test."""
    before = Path.cwd()
    yield
    os.chdir(before)
