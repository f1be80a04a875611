"""A byte stream for decoders in C, which would swallow the errors of its reads."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

# decoders read a few KiB at a time, and each read would be one request to an object store
READ_AHEAD_BYTES = 2**20
HEAD_BYTES = 64  # enough to recognise a format
SYSTEM = 2  # libsndfile's SFE_SYSTEM


class ErrorCapturingStream(io.RawIOBase):
    """A stream that records its errors: C code that reads through a callback would swallow them."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.error: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        try:
            content = self.stream.read(len(buffer))
        except Exception as error:
            self.error = error
            return 0
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def close(self) -> None:
        """Do nothing: a discarded reader closes its source, but the stream belongs to the caller and is read again."""

    def read_head(self) -> bytes:
        self.seek(0)
        return self.read(HEAD_BYTES) or b""

    def open_buffered(self) -> io.BufferedReader:
        """Return a read-ahead reader at the start of the content."""
        self.seek(0)
        return io.BufferedReader(self, READ_AHEAD_BYTES)

    def open_for_libsndfile(self) -> int | io.BufferedReader:
        """Return the content from its start; for a plain file its descriptor, which libsndfile reads twice as fast."""
        if not isinstance(self.stream, io.FileIO):
            return self.open_buffered()
        self.seek(0)
        return self.stream.fileno()

    def check(self, error: Exception | None = None) -> None:
        """Raise the stream's own error, or OSError if libsndfile reports a system error."""
        if getattr(error, "code", None) == SYSTEM:
            raise OSError(f"cannot be read: {error}") from None
        if self.error is not None:
            raise self.error
