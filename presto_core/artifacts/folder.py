"""A folder on any file system: files in it, whether it exists, deletion."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pyarrow import fs as pafs

from presto_core.artifacts.durable import sync_folder
from presto_core.artifacts.fast_path import FastPath, try_exists
from presto_core.artifacts.retry import DamagedError as DamagedError
from presto_core.artifacts.retry import Result, with_retries
from presto_core.artifacts.retry import StoreError as StoreError
from presto_core.artifacts.retry import explain as explain

MANIFEST = "manifest.json"


def _is_anyones() -> None:
    """Any process may change the folder; a named function, so that folders can be sent to workers."""


@dataclass(frozen=True)
class Folder:
    """A path in a file system.

    Attributes:
        filesystem_factory: pyarrow file system, or a function that returns the current one if credentials may change.
        path: path inside it, without scheme.
        uri: the path as a user writes it.
        fast_path: returns whole-file access in one request, faster than the file system; None if there is none.
        check_holder: called before every write and deletion; raises if another process may make them instead.
    """

    filesystem_factory: pafs.FileSystem | Callable[[], pafs.FileSystem]
    path: str
    uri: str
    fast_path: Callable[[], FastPath] | None = None
    check_holder: Callable[[], None] = _is_anyones

    @property
    def filesystem(self) -> pafs.FileSystem:
        """The current file system; credentials may change, so get it again for every use."""
        return self.filesystem_factory() if callable(self.filesystem_factory) else self.filesystem_factory

    def child(self, name: str) -> Folder:
        return replace(self, path=self.file_path(name), uri=f"{self.uri.rstrip('/')}/{name}")

    def guard(self, check_holder: Callable[[], None]) -> Folder:
        """The same folder, and all folders inside, for a process that may change them only while a check passes."""
        return replace(self, check_holder=check_holder)

    def file_path(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    def exists(self, name: str = MANIFEST) -> bool:
        if (is_file := try_exists(self.fast_path, self.file_path(name))) is not None:
            return is_file
        info = self.with_retries(
            lambda: self.filesystem.get_file_info(self.file_path(name)), f"look for {self.uri}/{name}"
        )
        return bool(info.type == pafs.FileType.File)

    def list_folders(self) -> list[str]:
        """Return the names of the folders inside; empty if nothing has been written yet."""
        entries = self._list(recursive=False, allow_not_found=True)
        return sorted(info.base_name for info in entries if info.type == pafs.FileType.Directory)

    def list_files(self, *, recursive: bool = False, missing_ok: bool = False) -> list[pafs.FileInfo]:
        """Return the file infos inside, sorted by path; with `missing_ok`, a missing folder is empty.

        Raises:
            StoreError: the folder does not exist or cannot be listed.
        """
        entries = self._list(recursive=recursive, allow_not_found=missing_ok)
        return sorted((info for info in entries if info.type == pafs.FileType.File), key=lambda info: info.path)

    def delete(self) -> None:
        """Delete the folder and its content, if it exists."""
        self.check_holder()

        def remove() -> None:
            if self.filesystem.get_file_info(self.path).type != pafs.FileType.NotFound:
                with suppress(FileNotFoundError):  # another process deleted it, or the store's listing is stale
                    self.filesystem.delete_dir(self.path)

        self.with_retries(remove, f"delete {self.uri}")

    def delete_file(self, name: str) -> None:
        """Delete one file, if it exists."""
        self.check_holder()

        def remove() -> None:
            if self.filesystem.get_file_info(self.file_path(name)).type == pafs.FileType.File:
                with suppress(FileNotFoundError):  # another process deleted it
                    self.filesystem.delete_file(self.file_path(name))
                    if name == MANIFEST and not self.is_remote:  # before any file that it lists, after a crash too
                        sync_folder(Path(self.path))

        self.with_retries(remove, f"delete {self.uri}/{name}")

    def with_retries(self, action: Callable[[], Result], operation: str) -> Result:
        """See `retry.with_retries`."""
        return with_retries(action, operation=operation, is_remote=self.is_remote)

    @property
    def has_holder(self) -> bool:
        """Whether nobody but this process, and those that it is shared with, may change the folder."""
        return self.check_holder is not _is_anyones

    @property
    def is_remote(self) -> bool:
        return not isinstance(self.filesystem_factory, pafs.LocalFileSystem)

    def _list(self, *, recursive: bool, allow_not_found: bool) -> list[pafs.FileInfo]:
        selector = pafs.FileSelector(self.path, recursive=recursive, allow_not_found=allow_not_found)

        def list_infos() -> list[pafs.FileInfo]:
            try:
                return list(self.filesystem.get_file_info(selector))
            except FileNotFoundError:
                raise StoreError(f"{self.uri} does not exist; name an existing folder") from None
            except NotADirectoryError:
                raise StoreError(f"{self.uri} is not a folder; name an existing folder") from None

        return self.with_retries(list_infos, f"list {self.uri}")
