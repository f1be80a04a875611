"""A pull onto a copy that lost or changed files fetches these again; anything else that is in the way stays."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.registry import transfer
from pipelines.registry.local_artifact import check_artifact_folder
from pipelines.storage.filesystem import open_folder
from presto_core.artifacts.manifest import Artifact, commit_artifact
from presto_core.artifacts.validate import UnsafeArtifactError
from tests.support.power_cuts import Disk

FILES = {"made.json": b"[1]", "more.json": b"[2]", "below/deep.json": b"[3]"}


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return commit_artifact(
        open_folder(str(tmp_path / "stored")),
        kind="report",
        artifact_id="a" * 16,
        config_yaml="",
        parents={},
        files=FILES,
        details={},
    )


def pull(artifact: Artifact, target: Path) -> bool:
    return transfer.pull(artifact, open_folder(artifact.uri), target)


def empty_a_file(copy: Path) -> None:
    (copy / "made.json").write_bytes(b"")  # what a power cut leaves


DAMAGE: dict[str, Callable[[Path], object]] = {
    "an empty file": empty_a_file,
    "a changed byte": lambda copy: (copy / "below/deep.json").write_bytes(b"[4]"),
    "a missing folder": lambda copy: shutil.rmtree(copy / "below"),
    "an empty manifest": lambda copy: (copy / "manifest.json").write_bytes(b""),
    "no manifest": lambda copy: (copy / "manifest.json").unlink(),
    "all of it": lambda copy: [p.write_bytes(b"") for p in copy.rglob("*") if p.is_file()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_copy_becomes_whole(artifact: Artifact, tmp_path: Path, damage: str):
    copy = tmp_path / "copy"
    assert pull(artifact, copy)
    assert not pull(artifact, copy)
    DAMAGE[damage](copy)
    assert pull(artifact, copy)
    check_artifact_folder(copy)
    assert not pull(artifact, copy)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "stored"]


def test_only_what_is_damaged_is_written(artifact: Artifact, tmp_path: Path):
    copy = tmp_path / "copy"
    pull(artifact, copy)
    before = (copy / "more.json").stat().st_ino
    empty_a_file(copy)
    pull(artifact, copy)
    assert (copy / "more.json").stat().st_ino == before


@pytest.mark.parametrize("what", ["another artifact", "other files", "a link inside", "a link to it"])
def test_what_is_no_copy_is_left_alone(artifact: Artifact, tmp_path: Path, what: str):
    copy = tmp_path / "copy"
    pull(artifact, copy)
    empty_a_file(copy)
    if what == "another artifact":
        (copy / "manifest.json").write_text('{"kind": "report", "id": "b", "files": {}}')
    elif what == "other files":
        (copy / "manifest.json").unlink()
        (copy / "mine.txt").write_text("mine")
    elif what == "a link inside":
        (copy / "below").rename(tmp_path / "elsewhere")
        (copy / "below").symlink_to(tmp_path / "elsewhere")
    else:
        copy.rename(tmp_path / "real")
        copy.symlink_to(tmp_path / "real")
    with pytest.raises(UnsafeArtifactError, match="copy"):
        pull(artifact, copy)
    assert (copy / "made.json").read_bytes() == b""


def test_a_pull_survives_a_power_cut(artifact: Artifact, tmp_path: Path):
    """After one at any moment, the copy is not there, or whole; the next pull completes it."""
    (tmp_path / "disk").mkdir()
    disk = Disk(tmp_path / "disk")
    with disk.record():
        pull(artifact, disk.root / "copy")
        disk.done = 1
    for root, moment in disk.iter_crashes(tmp_path / "after", choices=0):
        assert (root / "copy").exists() >= bool(moment.done)
        if (root / "copy").exists():
            check_artifact_folder(root / "copy")
