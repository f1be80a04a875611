"""Download a stored file in ranges, in parallel, with a ledger of finished ranges so that a download resumes."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from pipelines.storage.s3_clients import BucketAccess, share_s3_client
from pipelines.storage.s3_settings import endpoint
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import StoreError

PART_BYTES = 8 * 2**20


@dataclass(frozen=True)
class ByteRange:
    """Bytes [start, start + size) of a file."""

    name: str
    start: int
    size: int


def split_into_ranges(name: str, size: int) -> Iterator[ByteRange]:
    """Yield a file's ranges, in order; an empty file has none."""
    for start in range(0, size, PART_BYTES):
        yield ByteRange(name, start, min(PART_BYTES, size - start))


@dataclass
class RangeLedger:
    """The ranges that are on disk, one line each, written after the range's bytes."""

    NAME: ClassVar[str] = ".parts"

    path: Path
    ranges: set[ByteRange]
    lock: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def load(folder: Path) -> RangeLedger:
        """Read the ledger of an interrupted download; a truncated line is ignored."""
        path, ranges = folder / RangeLedger.NAME, set()
        if path.is_file():
            for line in path.read_text(errors="replace").splitlines():
                try:
                    byte_range = ByteRange(*json.loads(line))
                except (ValueError, TypeError):
                    continue
                ranges.add(byte_range)
        return RangeLedger(path, ranges)

    def __contains__(self, byte_range: ByteRange) -> bool:
        return byte_range in self.ranges

    def add(self, byte_range: ByteRange) -> None:
        with self.lock:
            self.ranges.add(byte_range)
            with self.path.open("a") as stream:
                stream.write(json.dumps([byte_range.name, byte_range.start, byte_range.size]) + "\n")

    def discard(self, name: str) -> None:
        """Remove all ranges of a file, whose content failed verification."""
        with self.lock:
            self.ranges = {part for part in self.ranges if part.name != name}
            lines = [json.dumps([part.name, part.start, part.size]) + "\n" for part in self.ranges]
            self.path.write_text("".join(lines))


def fetch(source: Folder, byte_range: ByteRange, path: Path) -> None:
    """Download one range into its position in a file; transient failures are retried.

    Raises:
        StoreError: the range cannot be read or written.
    """

    def get() -> bytes:
        return _get_range(source, byte_range) if source.is_remote else _read_range(source, byte_range)

    content = source.with_retries(get, f"read {source.uri}/{byte_range.name}")
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    try:
        written = 0
        while written < byte_range.size:
            written += os.pwrite(descriptor, content[written:] if written else content, byte_range.start + written)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror}; free some space and re-run the same command"
        ) from error
    finally:
        os.close(descriptor)


def _read_range(source: Folder, byte_range: ByteRange) -> bytes:
    with source.filesystem.open_input_file(source.file_path(byte_range.name)) as stream:
        stream.seek(byte_range.start)
        return _check_length(bytes(stream.read(byte_range.size)), byte_range, source)


def _get_range(source: Folder, byte_range: ByteRange) -> bytes:
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    bucket, _, key = source.file_path(byte_range.name).partition("/")
    span = f"bytes={byte_range.start}-{byte_range.start + byte_range.size - 1}"
    try:
        response = share_s3_client(BucketAccess(bucket, endpoint())).get_object(Bucket=bucket, Key=key, Range=span)
        # one byte more, to reject longer responses too
        return _check_length(response["Body"].read(byte_range.size + 1), byte_range, source)
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status in (404, 416):
            raise StoreError(
                f"{source.uri}/{byte_range.name} is missing or shorter than in its manifest; restore it"
            ) from None
        raise OSError(f"HTTP status {status}") from error
    except (BotoCoreError, HTTPError) as error:
        raise OSError(str(error)) from error


def _check_length(content: bytes, byte_range: ByteRange, source: Folder) -> bytes:
    if len(content) != byte_range.size:
        raise OSError(f"truncated: got {len(content)} of {byte_range.size} bytes of {source.uri}/{byte_range.name}")
    return content
