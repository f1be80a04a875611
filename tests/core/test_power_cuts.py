"""After a power cut at any moment, what is committed is whole; what was reported as committed is there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipelines.storage.exclusive_create import create_exclusive
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts import durable
from presto_core.artifacts.folder import MANIFEST, Folder
from presto_core.artifacts.store import commit, read_file, read_manifest, write_bytes, write_with_entry
from presto_core.training.checkpoint import Snapshot, read_newest_checkpoint, write_checkpoint
from presto_core.training.checkpoint_folders import delete_old
from tests.support.power_cuts import Disk, Moment


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    (tmp_path / "disk").mkdir()
    return Disk(tmp_path / "disk")


def check_whole(folder: Folder) -> int:
    """Read every file of a committed folder; return whether it is one."""
    if not folder.exists():
        return 0
    manifest = read_manifest(folder)
    for name in manifest["files"]:
        read_file(folder, name, manifest)
    return 1


def check_crashes(disk: Disk, tmp_path: Path, check: Callable[[Path, Moment], None]) -> None:
    assert len(disk.moments) > 4
    for root, moment in disk.iter_crashes(tmp_path / "after"):
        check(root, moment)


def write_two_artifacts(root: Path, disk: Disk) -> None:
    folder = open_folder(str(root))
    for number in range(2):
        own = folder.child(f"artifacts/{number}")
        entry = write_with_entry(own, "shards/0.parquet", b"shard" * 50)
        commit(own, {"files": {"shards/0.parquet": entry}}, {"weights": b"1" * 100, "samples/a.wav": b"2" * 100})
        disk.done += 1


def test_an_artifact_that_is_committed_is_whole(disk: Disk, tmp_path: Path):
    with disk.record():
        write_two_artifacts(disk.root, disk)

    def check(root: Path, moment: Moment) -> None:
        found = [check_whole(open_folder(f"{root}/artifacts/{number}")) for number in range(2)]
        assert sum(found) >= moment.done

    check_crashes(disk, tmp_path, check)


@pytest.mark.parametrize("left_out", ["file", "folder"])
def test_the_model_notices_what_is_not_synced(disk: Disk, tmp_path: Path, left_out: str):
    """Without the fsync of files, or of folders, the test above fails."""
    is_left_out = {"file": os.path.isfile, "folder": os.path.isdir}[left_out]
    with disk.record() as patch:
        record = os.fsync

        def skip(descriptor: int) -> None:
            if not is_left_out(f"/proc/self/fd/{descriptor}"):
                record(descriptor)

        patch.setattr(os, "fsync", skip)
        write_two_artifacts(disk.root, disk)
    losses = 0
    for root, moment in disk.iter_crashes(tmp_path / "after"):
        try:
            found = sum(check_whole(open_folder(f"{root}/artifacts/{number}")) for number in range(2))
            losses += found < moment.done
        except Exception:
            losses += 1
    assert losses


def test_the_newest_checkpoint_survives(disk: Disk, tmp_path: Path):
    def take(step: int) -> Snapshot:
        return Snapshot.from_state({"total_step": step, "weight": torch.full((20,), float(step))})

    with disk.record():
        folder = open_folder(str(disk.root))
        for step in range(1, 5):
            name = write_checkpoint(folder, take(step))
            disk.done = step
            delete_old(folder, newest=name, keep=2)

    def check(root: Path, moment: Moment) -> None:
        warnings: list[str] = []
        newest = read_newest_checkpoint(open_folder(str(root)), warnings.append)
        assert warnings == []  # none is damaged
        step = int(newest[0].uri[-9:]) if newest else 0
        assert step >= moment.done

    check_crashes(disk, tmp_path, check)


def test_a_file_that_is_replaced_or_created_once_is_old_or_new(disk: Disk, tmp_path: Path):
    contents = [b"old" * 30, b"new" * 40]
    with disk.record():
        folder = open_folder(str(disk.root))
        for content in contents:
            write_bytes(folder, "below/a", content)
            disk.done += 1
        assert create_exclusive(folder, "lease/000001.json", b"mine")
        disk.done += 1
        assert not create_exclusive(folder, "lease/000001.json", b"theirs")

    def check(root: Path, moment: Moment) -> None:
        path, created = root / "below/a", root / "lease/000001.json"
        allowed = contents[max(moment.done - 1, 0) :] or contents[-1:]
        assert path.read_bytes() in allowed if path.exists() else moment.done == 0
        assert created.read_bytes() == b"mine" if created.exists() else moment.done < 3

    check_crashes(disk, tmp_path, check)


def test_a_deletion_that_was_cut_short_leaves_nothing_that_looks_whole(disk: Disk, tmp_path: Path):
    folder = open_folder(str(disk.root)).child("a")
    with disk.record():
        commit(folder, {}, {"weights": b"1" * 100, "more": b"2"})
        folder.delete_file(MANIFEST)
        disk.look()
        (disk.root / "a/weights").unlink()
        disk.look()

    def check(root: Path, moment: Moment) -> None:
        check_whole(open_folder(f"{root}/a"))

    check_crashes(disk, tmp_path, check)


def test_a_folder_that_cannot_be_synced_is_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(descriptor: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    durable.sync_folder(tmp_path)
    (tmp_path / "a").write_text("1")
    with pytest.raises(OSError, match="Invalid"):
        durable.sync_file(tmp_path / "a")
