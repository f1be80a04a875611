"""Distribution of tests by pytest-xdist: all that share a server or Ray to one process, the others file by file.

Tests that start servers or a Ray of their own take minutes, so the other process begins with these: the whole flow
first (tests/e2e).

A plugin of tests/conftest.py. `--dist loadgroup` would do the same, but does not group with pytest 9.2
(github.com/pytest-dev/pytest-xdist/issues/1386).
"""

from __future__ import annotations

from functools import cache, cached_property
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

MARKS = {"ray", "services"}
SHARED = {"shared_ray", "object_store", "mlflow_server"}  # fixtures of a session's servers
WHOLE_FLOW = "tests/e2e/"
LIST = "presto_list_of_service_tests"  # key of the path that workers write that list to: only they collect tests


@cache
def make_list_file() -> Any:
    """Make the controller's file, which is deleted when its process ends."""
    return NamedTemporaryFile("r", prefix="presto-tests-", encoding="utf-8")


class ServicesInOneProcess(LoadScopeScheduling):  # type: ignore[misc]
    """The scheduler; it needs scopes only after all workers have collected and so have written the list."""

    @cached_property
    def service_tests(self) -> set[str]:
        return set(make_list_file().read().split("\n"))

    def _split_scope(self, nodeid: str) -> str:
        return "services" if nodeid in self.service_tests else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    node.workerinput[LIST] = make_list_file().name


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ServicesInOneProcess:
    config.option.loadscopereorder = False  # in the order of collection, not the largest files first
    return ServicesInOneProcess(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a worker, list the tests that share servers, and put those first that take longest."""
    path = getattr(config, "workerinput", {}).get(LIST)
    if path:
        items.sort(key=rank)
        Path(path).write_text("\n".join(item.nodeid for item in items if shares_services(item)), encoding="utf-8")


def rank(item: pytest.Item) -> int:
    """Place in the order: tests that share servers, the whole flow, others with servers, and all that need none."""
    if shares_services(item):
        return 0
    if item.nodeid.startswith(WHOLE_FLOW):
        return 1
    return 2 if has_services(item) else 3


def has_services(item: pytest.Item) -> bool:
    return any(mark.name in MARKS for mark in item.iter_markers())


def shares_services(item: pytest.Item) -> bool:
    """Whether a test uses a server or a Ray session that one process starts for all its tests."""
    uses_shared = not SHARED.isdisjoint(getattr(item, "fixturenames", ()))
    return has_services(item) and uses_shared and not item.nodeid.startswith(WHOLE_FLOW)
