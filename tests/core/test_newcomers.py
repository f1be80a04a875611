"""The aims for newcomers: how many files a common change touches."""

from __future__ import annotations

import pytest

from tests.support.newcomers import Task, find_broken_links, list_tasks


@pytest.mark.parametrize("task", list_tasks(), ids=lambda task: task.name)
def test_a_task_takes_no_more_files_than_its_aim(task: Task) -> None:
    assert task.files
    assert len(task.files) <= task.aim, f"{task.name} takes {', '.join(task.files)}"


def test_the_chain_from_storage_to_the_optimizer_is_whole() -> None:
    assert find_broken_links() == []
