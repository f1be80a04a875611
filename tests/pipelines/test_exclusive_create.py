"""A file that several writers want to create is created by one of them, whole, in a folder and on S3."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.storage.exclusive_create import create_exclusive
from pipelines.storage.filesystem import open_folder
from pipelines.storage.local_s3 import Server
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import StoreError, read_bytes


def create_at_once(folder: Folder, name: str, writers: int) -> tuple[list[bool], list[bytes]]:
    """Let writers with different contents start together; return who created the file, and the contents."""
    barrier, contents = threading.Barrier(writers), [bytes([65 + i]) * 1000 for i in range(writers)]

    def create(content: bytes) -> bool:
        barrier.wait(60)
        return create_exclusive(folder, name, content)

    with ThreadPoolExecutor(writers) as pool:
        return list(pool.map(create, contents)), contents


def check_one_writer_wins(folder: Folder, writers: int) -> None:
    created, contents = create_at_once(folder, "a.json", writers)
    assert created.count(True) == 1
    assert read_bytes(folder, "a.json") == contents[created.index(True)]
    assert [info.base_name for info in folder.list_files()] == ["a.json"]  # nothing temporary is left


def test_one_of_many_writers_creates_a_local_file(tmp_path: Path):
    for number in range(5):
        check_one_writer_wins(open_folder(str(tmp_path / "new" / str(number))), writers=8)


@pytest.mark.services
def test_one_of_many_writers_creates_an_object(object_store: Server, tmp_path: Path):
    folder = open_folder(f"s3://latents/exclusive/{tmp_path.name}")
    check_one_writer_wins(folder, writers=3)  # each makes a client, which takes most of the time
    # a writer whose response was lost asks again, and its own content means that it was the one
    assert create_exclusive(folder, "a.json", read_bytes(folder, "a.json"))


def test_a_file_that_exists_keeps_its_content(tmp_path: Path):
    folder = open_folder(str(tmp_path))
    assert create_exclusive(folder, "x", b"first")
    assert not create_exclusive(folder, "x", b"second")
    assert read_bytes(folder, "x") == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_that_cannot_be_made_is_refused_by_its_name(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"file/x"):
        create_exclusive(open_folder(str(tmp_path / "file")), "x", b"content")
