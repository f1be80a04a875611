"""The aims for newcomers: how many files a common change touches."""

from __future__ import annotations

from tests.support.newcomers import find_broken_links, list_tasks


def test_a_task_takes_no_more_files_than_its_aim() -> None:
    for task in list_tasks():
        assert 1 <= len(task.files) <= task.aim, f"{task.name} takes {', '.join(task.files) or 'no file'}"


def test_the_chain_from_storage_to_the_optimizer_is_whole() -> None:
    assert find_broken_links() == []
