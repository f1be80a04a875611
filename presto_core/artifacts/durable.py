"""Files on a local disk that survive a power cut: content is on the disk before the name that commits it.

A rename is atomic for readers, not for a disk: without fsync of the file first, a crash can leave the new name with no
bytes; without fsync of the folder afterwards, it can take the name back after it was reported.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path

_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # of file systems on which folders cannot be synced


def sync_file(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def sync_folders_between(paths: Iterable[Path], root: Path) -> None:
    """Sync the folders of files, up to and with `root`, which is above them."""
    folders = {root}
    for path in paths:
        folders |= {parent for parent in path.parents if parent.is_relative_to(root)}
    for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
        sync_folder(folder)


def make_folders(path: Path) -> None:
    """Create a folder and its parents so that they survive a crash."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file, not atomically, and wait until its bytes are on the disk."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def move_synced(source: Path, target: Path) -> None:
    """Give a synced file or folder its final name, and wait until the name is on the disk."""
    os.replace(source, target)
    sync_folder(target.parent)


def replace_file(
    path: Path, content: bytes, *, partial: Path, sync_name: bool = True, check: Callable[[], None] = lambda: None
) -> None:
    """Write a file under another name, then move it: whole or not there, after a crash too.

    Args:
        check: called once its bytes are on the disk, which may take long; raises if the file must not appear any more.
    """
    try:
        write_synced(partial, content)
        check()
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)  # a partial file would keep a full disk full
        raise
    if sync_name:
        sync_folder(path.parent)
