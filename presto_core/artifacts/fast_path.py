"""Read and write whole files in one request each, if a store offers a faster way than its file system.

A failure here is not final: the caller repeats the operation through the file system, which reports the cause.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

LIMIT_BYTES = 8 * 2**20  # larger files are better written in parts, which can be retried one by one


class FastPath(Protocol):
    """Whole-file access by path; all methods raise OSError, and writes are atomic."""

    def exists(self, path: str) -> bool: ...

    def get(self, path: str) -> bytes: ...

    def put(self, path: str, content: bytes) -> None: ...


def try_exists(fast_path: Callable[[], FastPath] | None, path: str) -> bool | None:
    """Return whether a file exists; None if the check fails or there is no fast path."""
    if fast_path:
        with suppress(OSError):
            return fast_path().exists(path)
    return None


def try_read(fast_path: Callable[[], FastPath] | None, path: str) -> bytes:
    """Return a file's content, unverified; empty if the read fails or there is no fast path."""
    if fast_path:
        with suppress(OSError):
            return fast_path().get(path)
    return b""


def try_write(fast_path: Callable[[], FastPath] | None, path: str, content: bytes) -> bool:
    """Write a small file; return whether it succeeded."""
    if fast_path and len(content) <= LIMIT_BYTES:
        with suppress(OSError):
            fast_path().put(path, content)
            return True
    return False
