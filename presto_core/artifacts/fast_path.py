"""Whole files in one request each, where a store has a quicker way than its file system.

It may fail: what did is done again with care, which tells why.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

LIMIT_BYTES = 8 * 2**20  # a larger file is better written in parts, of which one can be tried again


class FastPath(Protocol):
    """Files by their paths; all raise OSError, and a file is written whole or not at all."""

    def exists(self, path: str) -> bool: ...

    def get(self, path: str) -> bytes: ...

    def put(self, path: str, content: bytes) -> None: ...


def try_exists(fast_path: Callable[[], FastPath] | None, path: str) -> bool | None:
    """Whether there is a file; None where that goes wrong or cannot be done."""
    if fast_path:
        with suppress(OSError):
            return fast_path().exists(path)
    return None


def try_read(fast_path: Callable[[], FastPath] | None, path: str) -> bytes:
    """A file's content; nothing, or something else, where that goes wrong or cannot be done."""
    if fast_path:
        with suppress(OSError):
            return fast_path().get(path)
    return b""


def try_write(fast_path: Callable[[], FastPath] | None, path: str, content: bytes) -> bool:
    """Whether a file could be written."""
    if fast_path and len(content) <= LIMIT_BYTES:
        with suppress(OSError):
            fast_path().put(path, content)
            return True
    return False
