"""Fixtures of the tests that start, kill and end real processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.fault_runs import Parents, Training, write_table
from tests.support.processes import Life
from tests.support.synthetic_dataset import make_dataset
from tests.support.tiny_registry import Home, make_home

CHAOS_PAGE = "CHAOS_PAGE"  # names the page that gets the table of what was measured


@pytest.fixture
def begin() -> Iterator[Callable[..., Life]]:
    """Start lives; none outlasts its test."""
    begun: list[Life] = []

    def start(command: list[str], cwd: Path, environment: Mapping[str, str] | None = None, **how: bool) -> Life:
        cwd.mkdir(exist_ok=True)
        begun.append(Life(command, cwd, environment or {}, **how))
        return begun[-1]

    yield start
    for life in begun:
        life.look()
        life.end(patience_s=0)


@pytest.fixture(scope="session")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parents]:
    """A data set, a base and a layer-distilled model for runs to start from; at the end, the table of their faults."""
    folder, before = tmp_path_factory.mktemp("parents"), Path.cwd()
    data = Parents(make_dataset(str(folder / "data")).uri)
    teacher = Training("teacher", folder, data, steps=8, settings={"network.depth": 3}).finish_here()
    base = Parents(data.dataset, teacher.uri)
    layers = Training("L", folder, base, steps=8).finish_here()
    os.chdir(before)
    yield Parents(data.dataset, teacher.uri, layers.uri)
    if page := os.environ.get(CHAOS_PAGE):
        write_table(before / page)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A register on a data base and a folder, with a family of five in it, made once."""
    place, before = tmp_path_factory.mktemp("register"), Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        os.chdir(place)
        made = make_home(str(place / "store"))
        made.judged(made.made["S"], made.made["LS"], worse=(0.6, 0.4))
        os.chdir(before)
        yield made


@pytest.fixture
def beside_the_register(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(Path(home.root).parent)


@pytest.fixture
def copy(home: Home, tmp_path: Path) -> Path:
    """A registered artifact's folder, to spoil."""
    shutil.copytree(home.made["S"].uri, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(autouse=True)
def _same_folder() -> Iterator[None]:
    """Tests may go elsewhere, and are brought back."""
    before = Path.cwd()
    yield
    os.chdir(before)
