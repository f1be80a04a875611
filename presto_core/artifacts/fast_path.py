"""Whole files in one request each, where a store has a quicker way than its file system.

It may fail: what did is done again with care, which tells why.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

LIMIT_BYTES = 8 * 2**20  # a larger file is better written in parts, of which one can be tried again


class Quick(Protocol):
    """Files by their paths; all raise OSError, and a file is written whole or not at all."""

    def has(self, path: str) -> bool: ...

    def get(self, path: str) -> bytes: ...

    def put(self, path: str, content: bytes) -> None: ...


def found_quickly(quick: Callable[[], Quick] | None, path: str) -> bool | None:
    """Whether there is a file; None where that goes wrong or cannot be done."""
    if quick:
        with suppress(OSError):
            return quick().has(path)
    return None


def read_quickly(quick: Callable[[], Quick] | None, path: str) -> bytes:
    """A file's content; nothing, or something else, where that goes wrong or cannot be done."""
    if quick:
        with suppress(OSError):
            return quick().get(path)
    return b""


def written_quickly(quick: Callable[[], Quick] | None, path: str, content: bytes) -> bool:
    """Whether a file could be written."""
    if quick and len(content) <= LIMIT_BYTES:
        with suppress(OSError):
            quick().put(path, content)
            return True
    return False
