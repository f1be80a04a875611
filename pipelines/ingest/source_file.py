"""Open a source's file, hashed, for decoding: local files in place, files from object storage as a copy."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, cast

from blake3 import blake3

from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import DamagedError, download

SPOOL_BYTES = 64 * 2**20  # larger copies are kept on disk while they are decoded


@dataclass(frozen=True)
class SourceFile:
    """A file to decode.

    Attributes:
        digest: BLAKE3 of the content.
        stream: seekable content.
        stamp: size and modification time of a local file at the time of hashing.
    """

    digest: str
    stream: BinaryIO
    stamp: tuple[int, ...] | None = None

    @property
    def has_changed(self) -> bool:
        """Return whether the file has changed since it was hashed."""
        return self.stamp is not None and self.stamp != _read_stamp(self.stream)


@contextmanager
def open_source_file(source: Folder, name: str) -> Iterator[SourceFile]:
    """Open a source's file for the block; a local one is read in place, once for its hash.

    Raises:
        StoreError: the file does not exist or cannot be read.
    """
    uri = f"{source.uri}/{name}"
    if source.is_remote:
        with SpooledTemporaryFile(SPOOL_BYTES) as spool:
            copy = cast(BinaryIO, spool)
            yield SourceFile(download(source, name, copy), copy)
        return
    with source.with_retries(lambda: _open_file(Path(source.file_path(name)), uri), f"read {uri}") as file:
        stamp = _read_stamp(file)
        digest = source.with_retries(lambda: hashlib.file_digest(file, cast(Any, blake3)).hexdigest(), f"read {uri}")
        yield SourceFile(digest, file, stamp)


def _open_file(path: Path, uri: str) -> FileIO:
    try:
        return path.open("rb", buffering=0)  # decoders take a plain file
    except FileNotFoundError:
        raise DamagedError(f"{uri} does not exist") from None


def _read_stamp(file: BinaryIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
