"""Fixtures of the tests that start, kill and end real processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.pipelines.chaos import Parents, Training, write_table
from tests.pipelines.lives import Life
from tests.pipelines.synthetic import make_dataset

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


@pytest.fixture(autouse=True)
def _same_folder() -> Iterator[None]:
    """Tests may go elsewhere, and are brought back."""
    before = Path.cwd()
    yield
    os.chdir(before)
