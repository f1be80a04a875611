"""Files on a local disk that survive a power cut: content is on the disk before the name that commits it.

A rename is atomic for readers, not for a disk: without fsync of the file first, a crash can leave the new name with no
bytes; without fsync of the folder afterwards, it can take the name back after it was reported.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # of file systems on which folders cannot be synced


PROJECT_FOLDER = ".presto"  # a project's own folder: results, MLflow's database, servers' keys, logs
LEFTOVER_S = 24 * 3600.0  # a partial file of such an age is of a writer that was killed
_PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{8}\.partial")


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
    """Create a folder and its parents so that they survive a crash; a project's own folder is for its owner only."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(0o700 if folder.name == PROJECT_FOLDER else 0o777, exist_ok=True)
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


def name_partial(path: Path) -> Path:
    """Return the name under which one writer makes a file or folder; another one's name differs."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def delete_leftovers(folder: Path, *, names: Iterable[str] = (), older_than_s: float = LEFTOVER_S) -> None:
    """Delete partial files and folders of writers that were killed, as far as that is possible.

    Args:
        names: of what the partial ones were to become; if there are none, all partial files.
        older_than_s: how long ago they were written to, by the clock of the file system, which dated the folder when
            the caller wrote into it; 0 where nobody else may write.
    """
    wanted = set(names)
    with suppress(OSError):
        now = folder.stat().st_mtime
        for entry in list(os.scandir(folder)):
            if not entry.name.endswith(".partial"):
                continue
            match = _PARTIAL.fullmatch(entry.name)
            # earlier releases had one name for all writers of a file
            name = match[1] if match else entry.name.removesuffix(".partial")
            if name not in wanted and (wanted or not match):
                continue
            with suppress(FileNotFoundError):  # its writer ended meanwhile
                if now - entry.stat(follow_symlinks=False).st_mtime < older_than_s:
                    continue
                if entry.is_file(follow_symlinks=False):
                    os.unlink(entry.path)
                elif match and wanted and entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)


@lru_cache(maxsize=256)
def _delete_leftovers_once(folder: Path) -> None:
    """Not at each write: listing a large folder takes long."""
    delete_leftovers(folder)


def replace_file(
    path: Path,
    content: bytes,
    *,
    partial: Path | None = None,
    sync_name: bool = True,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write a file under another name, then move it: whole or not there, after a crash too.

    Of two writers at once, each moves its own file there, whole; one of them is the last.

    Args:
        partial: the other name; by default one that no other writer has.
        check: called once its bytes are on the disk, which may take long; raises if the file must not appear any more.
    """
    partial = partial or name_partial(path)
    try:
        write_synced(partial, content)
        check()
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)  # a partial file would keep a full disk full
        raise
    if sync_name:
        sync_folder(path.parent)
    _delete_leftovers_once(path.parent)
