"""Which checkpoints a run's folder holds: their names, their order, and which of them are deleted.

A checkpoint's folder is named after its step and the epoch of the driver that wrote it (the fencing token of the run's
lease), so that a driver which was superseded in the middle of an upload writes beside its successor's checkpoints, and
not into them. Whatever it still commits is older than any checkpoint of its successor.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from presto_core.artifacts.folder import MANIFEST, Folder

_NAME = re.compile(r"step-(\d+)(?:-epoch-(\d+))?")


@dataclass(frozen=True, order=True)
class CheckpointName:
    """The name of a checkpoint's folder; ordered by epoch, then by step: a run resumes from the newest."""

    epoch: int
    step: int

    def __str__(self) -> str:
        """Without an epoch for the first driver, as all checkpoints were named before there were epochs."""
        return f"step-{self.step:09d}" + (f"-epoch-{self.epoch:06d}" if self.epoch > 1 else "")

    @staticmethod
    def parse(name: str) -> CheckpointName | None:
        """Return None for any other folder."""
        match = _NAME.fullmatch(name)
        return CheckpointName(int(match[2] or 1), int(match[1])) if match else None


def list_checkpoints(folder: Folder) -> list[CheckpointName]:
    """Return the names of checkpoint folders, complete or not, oldest first."""
    return sorted(name for name in map(CheckpointName.parse, folder.list_folders()) if name)


def delete_old(folder: Folder, *, newest: CheckpointName, keep: int, every: int = 0) -> None:
    """Delete all checkpoints up to `newest` except the last `keep` of them and those at multiples of `every` steps.

    Checkpoints of later steps are left alone, whole or damaged, and do not count among those kept: a damaged one is
    written again once the run comes there. So is all that a newer epoch writes.

    Args:
        newest: the checkpoint just committed.
    """
    upto = [name for name in list_checkpoints(folder) if name.step <= newest.step and name.epoch <= newest.epoch]
    complete = [name for name in upto if folder.child(str(name)).exists()]
    last_at = {name.step: name for name in complete}
    kept = {*complete[-keep:], *(name for step, name in last_at.items() if every and step and step % every == 0)}
    for name in upto:
        if name not in kept:
            delete_checkpoint(folder.child(str(name)))


def delete_incomplete(folder: Folder, *, epoch: int = 1) -> None:
    """Delete checkpoints without a manifest, left by an interrupted save of this epoch or an earlier one."""
    for name in list_checkpoints(folder):
        if name.epoch <= max(epoch, 1) and not folder.child(str(name)).exists():
            folder.child(str(name)).delete()


def delete_checkpoint(checkpoint: Folder) -> None:
    """Delete the manifest first, so that an interrupted deletion does not look like a damaged checkpoint."""
    checkpoint.delete_file(MANIFEST)
    checkpoint.delete()
