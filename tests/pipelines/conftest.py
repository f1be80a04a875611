"""Fixtures of the tests that start, kill and end real processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.pipelines.lives import Life


@pytest.fixture
def begin() -> Iterator[Callable[[list[str], Path], Life]]:
    """Start lives; none outlasts its test."""
    begun: list[Life] = []

    def start(command: list[str], cwd: Path) -> Life:
        cwd.mkdir(exist_ok=True)
        begun.append(Life(command, cwd))
        return begun[-1]

    yield start
    for life in begun:
        life.look()
        life.end(patience_s=0)
