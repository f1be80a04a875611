"""Find the parts of a sound file that decoders would miss: they take the first header for the whole file.

Chained Ogg streams and joined FLAC and WAV files have several headers (MP3: mp3_parts.py), and WAV and AU files that
were written to a pipe state no size.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from presto_core.audio.error_capturing_stream import ErrorCapturingStream

SCAN_BYTES = 2**20
OGG_HEADER_BYTES, OGG_FIRST_PAGE = 27, 2
FLAC_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # the marker and the header of its first block
LARGEST_SIZE = 2**32 - 1


@dataclass(frozen=True)
class StreamPart:
    """Bytes of a file that one header describes.

    Attributes:
        start, stop: range of bytes.
        patches: offsets from `start` and the bytes that decoders read there.
        prefix: bytes that decoders read before those of the file.
    """

    start: int
    stop: int
    patches: tuple[tuple[int, bytes], ...] = ()
    prefix: bytes = b""

    @property
    def is_changed(self) -> bool:
        """Whether decoders read other bytes than the file has from `start` on."""
        return bool(self.patches or self.prefix)


class PartStream(io.RawIOBase):
    """A part of a stream as a stream of its own."""

    def __init__(self, stream: BinaryIO, part: StreamPart) -> None:
        self.stream, self.part = stream, part
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        prefix = self.part.prefix
        if self.position < len(prefix):
            content = prefix[self.position : self.position + len(buffer)]
        else:
            content = self._read_file(self.position - len(prefix), len(buffer))
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)

    def _read_file(self, offset: int, count: int) -> bytes:
        """Read up to `count` bytes, `offset` bytes after the part's start."""
        self.stream.seek(self.part.start + offset)
        content = bytearray(self.stream.read(max(min(count, self.part.stop - self.part.start - offset), 0)) or b"")
        for patch_offset, patch in self.part.patches:
            for i, value in enumerate(patch, patch_offset - offset):
                if 0 <= i < len(content):
                    content[i] = value
        return bytes(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        length = len(self.part.prefix) + self.part.stop - self.part.start
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: length}[whence]
        self.position = max(base + offset, 0)
        return self.position

    def tell(self) -> int:
        return self.position


def open_part(source: ErrorCapturingStream, part: StreamPart) -> ErrorCapturingStream:
    """Return a part as a stream for decoders."""
    return ErrorCapturingStream(cast(BinaryIO, PartStream(source.stream, part)))


def measure(source: ErrorCapturingStream) -> int:
    """Return the number of bytes of a stream."""
    return source.seek(0, io.SEEK_END)


def split_at(starts: list[int], size: int) -> list[StreamPart]:
    """Return the parts that begin at `starts`; the first one begins at 0."""
    return [StreamPart(start, stop) for start, stop in zip([0, *starts[1:]], [*starts[1:], size])]


def find_ogg_parts(source: ErrorCapturingStream) -> list[StreamPart]:
    """Return the links of an Ogg file: each begins with first pages of its streams, after pages of other kinds."""
    size, reader = measure(source), source.open_buffered()
    starts, position, was_first = list[int](), 0, False
    while (position := _find_ogg_page(reader, position)) >= 0:
        reader.seek(position)
        header = reader.read(OGG_HEADER_BYTES)
        if len(header) < OGG_HEADER_BYTES:
            break
        is_first = bool(header[5] & OGG_FIRST_PAGE)
        if is_first and not was_first:
            starts.append(position)
        was_first = is_first
        segments = reader.read(header[26])
        position += OGG_HEADER_BYTES + len(segments) + sum(segments)
    source.check()
    return split_at(starts, size)


def _find_ogg_page(reader: io.BufferedReader, position: int) -> int:
    """Return the position of the next page, usually the given one; -1 if there is none."""
    reader.seek(position)
    if reader.read(4) == b"OggS":
        return position
    reader.seek(position)
    return next((start for start, _ in iter_matches(reader, re.compile(b"OggS"))), -1)


def find_flac_parts(source: ErrorCapturingStream) -> list[StreamPart]:
    """Return the files of which a FLAC was joined."""
    size = measure(source)
    starts = [start for start, _ in iter_matches(source.open_buffered(), FLAC_START)]
    source.check()
    return split_at(starts, size)


def iter_matches(reader: io.BufferedReader, pattern: re.Pattern[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield position and bytes of matches of at most 8 bytes, from the reader's position on."""
    offset, kept = reader.tell(), b""
    while chunk := reader.read(SCAN_BYTES):
        text = kept + chunk
        is_last = len(chunk) < SCAN_BYTES
        limit = len(text) if is_last else len(text) - 7
        for match in pattern.finditer(text):
            if match.start() < limit:
                yield offset + match.start(), match.group()
        offset, kept = offset + limit, text[limit:]


def find_wav_parts(source: ErrorCapturingStream) -> list[StreamPart]:
    """Return the files of which a WAV was joined, with a size for samples that state none."""
    size, reader = measure(source), source.open_buffered()
    starts, patches, position = [0], dict[int, tuple[tuple[int, bytes], ...]](), 12
    while position + 8 <= size:
        reader.seek(position)
        name, length, form = struct.unpack("<4sI4s", reader.read(12).ljust(12, b"\0"))
        if name == b"RIFF" and form == b"WAVE":
            starts.append(position)
            position += 12
            continue
        if not _is_chunk_name(name):
            break
        rest = size - position - 8
        if name == b"data" and length == 0 and rest and not _are_chunks(reader, position + 8, size):
            total = struct.pack("<I", min(size - starts[-1] - 8, LARGEST_SIZE))
            samples = struct.pack("<I", min(rest, LARGEST_SIZE))
            patches[starts[-1]] = ((4, total), (position + 4 - starts[-1], samples))
            break
        position += 8 + length + length % 2
    source.check()
    return [StreamPart(part.start, part.stop, patches.get(part.start, ())) for part in split_at(starts, size)]


def find_au_parts(source: ErrorCapturingStream) -> list[StreamPart]:
    """Return an AU file, with an unknown size for samples of size 0."""
    head, size = source.read_head(), measure(source)
    start, length = struct.unpack(">II", head[4:12])
    is_unstated = length == 0 and start < size
    return [StreamPart(0, size, ((8, struct.pack(">I", LARGEST_SIZE)),) if is_unstated else ())]


def _is_chunk_name(name: bytes) -> bool:
    return all(0x20 <= byte < 0x7F for byte in name)


def _are_chunks(reader: io.BufferedReader, position: int, size: int) -> bool:
    """Return whether the rest of a file is a sequence of whole chunks, and so no samples."""
    while position + 8 <= size:
        reader.seek(position)
        name, length = struct.unpack("<4sI", reader.read(8))
        if not _is_chunk_name(name):
            return False
        position += 8 + length + length % 2
    return size <= position <= size + 1
