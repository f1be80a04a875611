"""Distribution of tests by pytest-xdist: all that share something started for a session to one process each time.

What is shared is a Ray session, a Ray cluster that takes jobs, or servers alone: three groups, which different
processes may run at once, each with servers of its own. All others go file by file. Groups, and tests that start
servers or a Ray of their own, take minutes, so these come first: the whole flow (tests/e2e) before all others.

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
# fixtures of a session -> the group of the tests that use them; the first that fits
GROUPS = {"shared_ray": "ray", "plane": "cluster", "object_store": "servers", "mlflow_server": "servers"}
WHOLE_FLOW = "tests/e2e/"
LIST = "presto_list_of_service_tests"  # key of the path that workers write that list to: only they collect tests


@cache
def make_list_file() -> Any:
    """Make the controller's file, which is deleted when its process ends."""
    return NamedTemporaryFile("r", prefix="presto-tests-", encoding="utf-8")


class GroupsInOneProcess(LoadScopeScheduling):  # type: ignore[misc]
    """The scheduler; it needs scopes only after all workers have collected and so have written the list."""

    @cached_property
    def groups(self) -> dict[str, str]:
        """Test -> its group, of those that have one."""
        lines = [line.partition(" ") for line in make_list_file().read().split("\n")]
        return {nodeid: group for group, _, nodeid in lines}

    def _split_scope(self, nodeid: str) -> str:
        return self.groups.get(nodeid) or nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    node.workerinput[LIST] = make_list_file().name


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupsInOneProcess:
    config.option.loadscopereorder = False  # in the order of collection, not the largest files first
    return GroupsInOneProcess(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a worker, list the tests that have a group, and put those first that take longest."""
    path = getattr(config, "workerinput", {}).get(LIST)
    if path:
        items.sort(key=rank)
        lines = [f"{group} {item.nodeid}" for item in items if (group := find_group(item))]
        Path(path).write_text("\n".join(lines), encoding="utf-8")


def rank(item: pytest.Item) -> int:
    """Position in the order: the whole flow, tests with a group, others with servers, and all that need none."""
    if item.nodeid.startswith(WHOLE_FLOW):
        return 0
    if group := find_group(item):
        return 1 + list(GROUPS.values()).index(group)
    return 1 + len(GROUPS) + (not has_services(item))


def has_services(item: pytest.Item) -> bool:
    return any(mark.name in MARKS for mark in item.iter_markers())


def find_group(item: pytest.Item) -> str:
    """The group of a test that uses what one process starts for all its tests; empty for others."""
    if not has_services(item) or item.nodeid.startswith(WHOLE_FLOW):
        return ""
    names = getattr(item, "fixturenames", ())
    return next((group for fixture, group in GROUPS.items() if fixture in names), "")
