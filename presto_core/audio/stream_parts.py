"""Parts of a sound file that decoders would miss, since they take the first header for the whole file; those of Ogg.

Other formats: mp3_parts.py, flac_parts.py, chunk_parts.py (WAV and its kin), atom_parts.py (m4a).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, cast

from presto_core.audio.error_capturing_stream import ErrorCapturingStream

SCAN_BYTES = 2**20
ASF_START = b"0&\xb2u\x8ef\xcf\x11"
OGG_HEADER_BYTES, OGG_FIRST_PAGE = 27, 2
OPUS_HEAD_BYTES, OPUS_RATE_HZ = 19, 48000
LONGEST_PAGE_SECONDS = 3  # encoders fill a page with a second or less


@dataclass(frozen=True)
class StreamPart:
    """Bytes of a file that one header describes.

    Attributes:
        start, stop: range of bytes.
        patches: offsets from `start` and the bytes that decoders read there.
        prefix: bytes that decoders read before those of the file.
        min_samples: samples per channel that it holds at least; decoders give fewer if it is damaged.
    """

    start: int
    stop: int
    patches: tuple[tuple[int, bytes], ...] = ()
    prefix: bytes = b""
    min_samples: int = 0


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
    """Return the parts that begin at `starts`; the last one ends with the file."""
    return [StreamPart(start, stop) for start, stop in zip(starts, [*starts[1:], size])]


def find_ogg_parts(source: ErrorCapturingStream, start: int) -> list[StreamPart]:
    """Return the links of an Ogg file: each begins with first pages of its streams, after pages of other kinds.

    Decoders leave out a damaged page, up to a second of music, without a word; the pages' positions tell.
    """
    size, reader = measure(source), source.open_buffered()
    starts, links, position, was_first = list[int](), list[OggLink](), start, False
    while (position := _find_ogg_page(reader, position)) >= 0:
        reader.seek(position)
        header = reader.read(OGG_HEADER_BYTES)
        if len(header) < OGG_HEADER_BYTES:
            break
        segments = reader.read(header[26])
        body = reader.read(min(sum(segments), OPUS_HEAD_BYTES))
        is_first = bool(header[5] & OGG_FIRST_PAGE)
        if is_first and not was_first:
            starts.append(position)
            links.append(OggLink())
        position += OGG_HEADER_BYTES + len(segments) + sum(segments)
        if links and position <= size:
            links[-1].add_page(header, body)
        was_first = is_first
    source.check()
    parts = split_at([start, *starts[1:]], size)
    return [replace(part, min_samples=link.min_samples) for part, link in zip(parts, links)] or parts


@dataclass
class OggLink:
    """What the pages of a link say of its music.

    Attributes:
        serial: number of its stream of Vorbis or Opus, the first if there are several.
        skipped: samples at the start that are no music.
        positions: number of the sample after the first and the last page.
    """

    serial: bytes = b""
    skipped: int = 0
    rate_hz: int = 0
    positions: tuple[int, int] | None = None

    def add_page(self, header: bytes, body: bytes) -> None:
        serial, position = header[14:18], int.from_bytes(header[6:14], "little", signed=True)
        if not self.serial and header[5] & OGG_FIRST_PAGE:
            self._read_head(serial, body)
        if serial == self.serial and position > 0:
            self.positions = (position if self.positions is None else self.positions[0], position)

    def _read_head(self, serial: bytes, body: bytes) -> None:
        if body.startswith(b"\x01vorbis") and len(body) >= 16:
            self.serial, self.rate_hz = serial, int.from_bytes(body[12:16], "little")
        elif body.startswith(b"OpusHead") and len(body) >= 12:
            self.serial, self.rate_hz, self.skipped = serial, OPUS_RATE_HZ, int.from_bytes(body[10:12], "little")

    @property
    def min_samples(self) -> int:
        """Return the samples that the link has; a recording of a broadcast may begin at any number."""
        if self.positions is None:
            return 0
        first, last = self.positions
        origin = 0 if first <= LONGEST_PAGE_SECONDS * self.rate_hz else first
        return max(last - origin - self.skipped, 0)


def find_asf_parts(source: ErrorCapturingStream, start: int) -> list[StreamPart]:
    """Return the files of which a WMA was joined."""
    size, reader = measure(source), source.open_buffered()
    reader.seek(start)
    starts = [position for position, _ in iter_matches(reader, re.compile(re.escape(ASF_START)))]
    source.check()
    return split_at(starts, size)


def _find_ogg_page(reader: io.BufferedReader, position: int) -> int:
    """Return the position of the next page, usually the given one; -1 if there is none."""
    reader.seek(position)
    if reader.read(4) == b"OggS":
        return position
    reader.seek(position)
    return next((start for start, _ in iter_matches(reader, re.compile(b"OggS"))), -1)


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
