"""Of two drivers on one run exactly one changes anything, however late the other one wakes, and in whatever process."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.storage.exclusive_create import create_exclusive
from pipelines.storage.fence import Fence, LeaseLostError
from pipelines.storage.filesystem import open_folder
from pipelines.storage.lease import hold_lease, make_holder
from pipelines.tracking.metric_log import MetricLog
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.manifest import commit_artifact
from presto_core.artifacts.run_layout import CHECKPOINTS, LEASE
from presto_core.artifacts.store import StoreError, commit, read_bytes, write_bytes
from presto_core.training.checkpoint import Snapshot, read_newest_checkpoint, write_checkpoint
from presto_core.training.checkpoint_folders import CheckpointName, delete_incomplete, delete_old, list_checkpoints

STORES = ["local", pytest.param("s3", marks=pytest.mark.services)]


@pytest.fixture(params=STORES)
def scratch(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """The folder of a run, with something in it."""
    if request.param == "local":
        folder = open_folder(str(tmp_path / "run"))
    else:
        request.getfixturevalue("object_store")
        folder = open_folder(f"s3://latents/fencing/{tmp_path.name}")
    write_bytes(folder, "run.json", b"{}")
    write_checkpoint(folder.child(CHECKPOINTS), snapshot(1))
    write_bytes(folder.child(CHECKPOINTS).child("step-000000009"), "state.json", b"half")
    return folder


def snapshot(step: int) -> Snapshot:
    return Snapshot(step, {}, {"items": []})


def take_over(scratch: Folder, epoch: int) -> None:
    """Another machine's process takes the next epoch of the run's lease."""
    taker = replace(make_holder(), host="far", machine="far/boot", pid=7)
    write_bytes(scratch.child(LEASE), f"{epoch:06d}.json", json.dumps(taker.__dict__).encode())


def list_content(folder: Folder) -> dict[str, bytes]:
    files = folder.list_files(recursive=True)
    names = [info.path.removeprefix(folder.path).lstrip("/") for info in files]
    return {name: read_bytes(folder, name) for name in names}


def make_fence(scratch: Folder) -> Fence:
    with hold_lease(scratch.child(LEASE), "run x") as lease:
        return lease.fence


CHANGES: dict[str, Callable[[Folder], object]] = {
    "a file": lambda scratch: write_bytes(scratch, "run.json", b"mine"),
    "rows": lambda scratch: MetricLog(scratch.child("metrics")).write(3, [(3, {"loss": 1.0})]),
    "a checkpoint": lambda scratch: write_checkpoint(scratch.child(CHECKPOINTS), snapshot(2)),
    "a copy of weights": lambda scratch: commit(scratch.child("validations").child("update-1"), {}, {"w": b"w"}),
    "an artifact": lambda scratch: commit_artifact(
        scratch.child("artifact"), kind="report", artifact_id="a" * 16, config_yaml="", parents={}, files={}, details={}
    ),
    "a log entry": lambda scratch: create_exclusive(scratch, "000001.json", b"mine"),
    "old checkpoints": lambda scratch: delete_old(
        scratch.child(CHECKPOINTS), newest=CheckpointName(1, 9), keep=1, every=0
    ),
    "half a checkpoint": lambda scratch: delete_incomplete(scratch.child(CHECKPOINTS)),
    "one file": lambda scratch: scratch.delete_file("run.json"),
    "everything": lambda scratch: scratch.delete(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_superseded_holder_changes_and_deletes_nothing(scratch: Folder, change: str):
    fence = make_fence(scratch)
    mine = fence.guard(scratch)
    write_bytes(mine, "mine", b"1")
    take_over(scratch, fence.epoch + 1)
    before = list_content(scratch)
    in_another_process: Folder = pickle.loads(pickle.dumps(mine))
    for guarded in (mine, in_another_process):
        with pytest.raises(LeaseLostError, match="process 7 on far"):
            CHANGES[change](guarded)
    assert list_content(scratch) == before


def test_the_epoch_of_a_lease_that_was_deleted_and_taken_again_is_another(tmp_path: Path):
    scratch = open_folder(str(tmp_path))
    old = make_fence(scratch)
    scratch.child(LEASE).delete()
    with pytest.raises(LeaseLostError):
        old.check()
    new = make_fence(scratch)
    assert new.epoch == old.epoch
    new.check()
    with pytest.raises(LeaseLostError):
        old.check()


def test_a_zombie_neither_renews_nor_releases_the_lease_of_another_with_its_epoch(tmp_path: Path):
    folder = open_folder(str(tmp_path / LEASE))
    with hold_lease(folder, "run x") as zombie:
        folder.delete()
        take_over(open_folder(str(tmp_path)), zombie.epoch)
        before = list_content(folder)
        zombie._renew()
        assert zombie.lost
    assert list_content(folder) == before


def test_a_store_that_does_not_answer_is_not_a_lost_lease(tmp_path: Path):
    scratch = open_folder(str(tmp_path))
    fence = make_fence(scratch)
    (tmp_path / LEASE).rename(tmp_path / "elsewhere")
    (tmp_path / LEASE).write_text("no folder")
    with pytest.raises(StoreError):
        fence.check()


def test_what_a_zombie_uploads_lands_beside_its_successors_checkpoints_and_is_not_resumed_from(scratch: Folder):
    """It was frozen after its check, within one request, and wakes when the successor has saved."""
    checkpoints = scratch.child(CHECKPOINTS)
    for step in (3, 5):
        newest = write_checkpoint(checkpoints, snapshot(step), epoch=2)
    mine = list_content(checkpoints.child(str(newest)))
    write_checkpoint(checkpoints, snapshot(5), epoch=1)
    write_checkpoint(checkpoints, snapshot(8), epoch=1)
    delete_old(checkpoints, newest=CheckpointName(1, 8), keep=1)  # its deletions as well
    assert list_content(checkpoints.child(str(newest))) == mine
    found = read_newest_checkpoint(checkpoints)
    assert found is not None
    assert CheckpointName.parse(found[0].uri.rpartition("/")[2]) == newest == CheckpointName(2, 5)


def test_a_commit_deletes_no_newer_checkpoint_whole_or_not(tmp_path: Path):
    folder = open_folder(str(tmp_path))
    for step in (1, 2, 3, 7):
        write_checkpoint(folder, snapshot(step))
    write_checkpoint(folder, snapshot(2), epoch=2)
    write_bytes(folder.child("step-000000009"), "state.json", b"being uploaded")
    delete_old(folder, newest=CheckpointName(1, 3), keep=1)
    assert list_checkpoints(folder) == [
        CheckpointName(1, 3), CheckpointName(1, 7), CheckpointName(1, 9), CheckpointName(2, 2)
    ]  # fmt: skip
