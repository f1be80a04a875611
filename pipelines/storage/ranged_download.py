"""A stored file in parts, fetched side by side; which are there is written down, so that a copy goes on."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from pipelines.storage.filesystem import create_s3_client, endpoint
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import StoreError

PART_BYTES = 8 * 2**20


@dataclass(frozen=True)
class ByteRange:
    """Bytes start ... start + size of a file."""

    name: str
    start: int
    size: int


def split_into_ranges(name: str, size: int) -> Iterator[ByteRange]:
    """A file's parts, in order; none of an empty one."""
    for start in range(0, size, PART_BYTES):
        yield ByteRange(name, start, min(PART_BYTES, size - start))


@dataclass
class RangeLedger:
    """The parts that are on disk: a line each, written after the part's bytes."""

    NAME: ClassVar[str] = ".parts"

    path: Path
    ranges: set[ByteRange]
    lock: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def load(folder: Path) -> RangeLedger:
        """Those of an interrupted copy; a line that was cut is none."""
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
        """All parts of a file, which turned out not to be right."""
        with self.lock:
            self.ranges = {part for part in self.ranges if part.name != name}
            lines = [json.dumps([part.name, part.start, part.size]) + "\n" for part in self.ranges]
            self.path.write_text("".join(lines))


def fetch(source: Folder, byte_range: ByteRange, path: Path) -> None:
    """Write one part to its place in a file, again where that failed in passing.

    Raises:
        StoreError: it cannot be read or written.
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
            f"cannot write {path}: {error.strerror}; free some space and run the same command again"
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
        response = _client(endpoint()).get_object(Bucket=bucket, Key=key, Range=span)
        return _check_length(
            response["Body"].read(byte_range.size + 1), byte_range, source
        )  # a longer answer is not taken either
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status in (404, 416):
            raise StoreError(
                f"{source.uri}/{byte_range.name} does not exist, or is shorter than its manifest says"
            ) from None
        raise OSError(f"HTTP status {status}") from error
    except (BotoCoreError, HTTPError) as error:
        raise OSError(str(error)) from error


def _check_length(content: bytes, byte_range: ByteRange, source: Folder) -> bytes:
    if len(content) != byte_range.size:
        raise OSError(f"truncated: {len(content)} bytes of {source.uri}/{byte_range.name} came, not {byte_range.size}")
    return content


@lru_cache(maxsize=4)
def _client(url: str | None) -> Any:
    """One for all threads; its connections are kept, its credentials renewed by boto3."""
    return create_s3_client(url, max_pool_connections=16)
