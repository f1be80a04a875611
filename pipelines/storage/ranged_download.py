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

from pipelines.storage.filesystem import endpoint, s3_client
from presto_core.artifacts.folder import Folder
from presto_core.artifacts.store import StoreError

PART_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Part:
    """Bytes start ... start + size of a file."""

    name: str
    start: int
    size: int


def parts_of(name: str, size: int) -> Iterator[Part]:
    """A file's parts, in order; none of an empty one."""
    for start in range(0, size, PART_BYTES):
        yield Part(name, start, min(PART_BYTES, size - start))


@dataclass
class Parts:
    """The parts that are on disk: a line each, written after the part's bytes."""

    NAME: ClassVar[str] = ".parts"

    path: Path
    known: set[Part]
    lock: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def of(folder: Path) -> Parts:
        """Those of an interrupted copy; a line that was cut is none."""
        path, known = folder / Parts.NAME, set()
        if path.is_file():
            for line in path.read_text(errors="replace").splitlines():
                try:
                    part = Part(*json.loads(line))
                except (ValueError, TypeError):
                    continue
                known.add(part)
        return Parts(path, known)

    def __contains__(self, part: Part) -> bool:
        return part in self.known

    def add(self, part: Part) -> None:
        with self.lock:
            self.known.add(part)
            with self.path.open("a") as stream:
                stream.write(json.dumps([part.name, part.start, part.size]) + "\n")

    def forget(self, name: str) -> None:
        """All parts of a file, which turned out not to be right."""
        with self.lock:
            self.known = {part for part in self.known if part.name != name}
            lines = [json.dumps([part.name, part.start, part.size]) + "\n" for part in self.known]
            self.path.write_text("".join(lines))


def fetch(source: Folder, part: Part, path: Path) -> None:
    """Write one part to its place in a file, again where that failed in passing.

    Raises:
        StoreError: it cannot be read or written.
    """

    def get() -> bytes:
        return _get_range(source, part) if source.remote else _read_range(source, part)

    content = source.persist(get, f"read {source.uri}/{part.name}")
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    try:
        written = 0
        while written < part.size:
            written += os.pwrite(descriptor, content[written:] if written else content, part.start + written)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror}; free some space and run the same command again"
        ) from error
    finally:
        os.close(descriptor)


def _read_range(source: Folder, part: Part) -> bytes:
    with source.filesystem.open_input_file(source.file(part.name)) as stream:
        stream.seek(part.start)
        return _exactly(bytes(stream.read(part.size)), part, source)


def _get_range(source: Folder, part: Part) -> bytes:
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    bucket, _, key = source.file(part.name).partition("/")
    span = f"bytes={part.start}-{part.start + part.size - 1}"
    try:
        answer = _client(endpoint()).get_object(Bucket=bucket, Key=key, Range=span)
        return _exactly(answer["Body"].read(part.size + 1), part, source)  # a longer answer is not taken either
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if status in (404, 416):
            raise StoreError(f"{source.uri}/{part.name} does not exist, or is shorter than its manifest says") from None
        raise OSError(f"HTTP status {status}") from error
    except (BotoCoreError, HTTPError) as error:
        raise OSError(str(error)) from error


def _exactly(content: bytes, part: Part, source: Folder) -> bytes:
    if len(content) != part.size:
        raise OSError(f"truncated: {len(content)} bytes of {source.uri}/{part.name} came, not {part.size}")
    return content


@lru_cache(maxsize=4)
def _client(url: str | None) -> Any:
    """One for all threads; its connections are kept, its credentials renewed by boto3."""
    return s3_client(url, max_pool_connections=16)
