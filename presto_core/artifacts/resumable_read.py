"""Read a stored file in blocks: a failed read resumes at the byte reached, and truncated responses are detected."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from presto_core.artifacts.retry import DamagedError, StoreError

if TYPE_CHECKING:
    from presto_core.artifacts.folder import Folder

BLOCK_BYTES = 8 * 2**20  # per request
_UNWRITTEN_MARKER = 0xA7


def read_blocks(folder: Folder, name: str) -> Iterator[bytearray]:
    """Yield the content of a file in order; every block has its own retries.

    Raises:
        StoreError: the file does not exist, cannot be read, or is replaced during the read.
    """
    stream = _ObjectStream(folder, name)
    while block := folder.with_retries(stream.read_next_block, f"read {folder.uri}/{name}"):
        yield block


class _ObjectStream:
    """An open file and its read position; reopened after a failure."""

    def __init__(self, folder: Folder, name: str) -> None:
        self.folder, self.name = folder, name
        self.stream: Any = None
        self.identity: Any = None
        self.position = 0

    def read_next_block(self) -> bytearray:
        """Return the next bytes; empty at the end."""
        try:
            if self.stream is None:
                self._open()
            block = self._read(min(BLOCK_BYTES, self.stream.size() - self.position))
        except FileNotFoundError:
            raise DamagedError(f"{self.folder.uri}/{self.name} does not exist") from None
        except OSError:
            self.stream = None
            raise
        self.position += len(block)
        return block

    def _open(self) -> None:
        stream = self.folder.filesystem.open_input_file(self.folder.file_path(self.name))
        identity = (stream.size(), stream.metadata())
        if self.identity not in (None, identity):
            raise StoreError(f"{self.folder.uri}/{self.name} changed while it was read; re-run the same command")
        self.stream, self.identity = stream, identity

    def _read(self, count: int) -> bytearray:
        block = bytearray(count)
        if count == 0:
            return block
        # Arrow accepts a response with too few bytes and leaves the rest of the buffer untouched
        block[-1] = _UNWRITTEN_MARKER
        num_read = self._fill(block, self.position)
        if num_read < count or (block[-1] == _UNWRITTEN_MARKER and not self._is_marker_byte(self.position + count - 1)):
            raise OSError(f"truncated: received fewer than {count} bytes")
        return block

    def _is_marker_byte(self, position: int) -> bool:
        """Return whether the file's byte at `position` equals the marker of unwritten bytes."""
        last = bytearray([_UNWRITTEN_MARKER ^ 0xFF])
        self._fill(last, position)
        return last[0] == _UNWRITTEN_MARKER

    def _fill(self, buffer: bytearray, position: int) -> int:
        self.stream.seek(position)
        return int(self.stream.readinto(buffer))
