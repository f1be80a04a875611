"""Find the files of which a WAV, AIFF, CAF or AU file was joined, and state sizes that their headers leave open.

Decoders read the samples that the first header states. Programs that write to a pipe state none, and of joined files
only the first would be read.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass

from presto_core.audio.error_capturing_stream import ErrorCapturingStream
from presto_core.audio.sound import AudioError
from presto_core.audio.stream_parts import StreamPart, measure

LARGEST_SIZE = 2**32 - 1
HEAD_BYTES = 40  # of the longest head, that of a Wave64
# bytes after the samples that may belong to nothing, such as a tag or padding; fewer are ignored
MAX_LOOSE_BYTES, MAX_LOOSE_SHARE = 2**16, 0.01
RF64_SIZES = b"ds64"  # chunk that states sizes of 64 bits: those of the file, the samples, and their number
W64_SUFFIX = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0O\x8e\xdb\x8a"


@dataclass(frozen=True)
class ChunkFormat:
    """How a format lays out its chunks.

    Attributes:
        magic: first bytes of a file.
        head_bytes: bytes before the first chunk.
        header: struct of a chunk's name and size.
        own_bytes: bytes of that header that the size includes.
        alignment: chunks begin at multiples of it, counted from the start of the file.
        samples: name of the chunk of samples.
        file_size: offset and struct of the size of the whole file, and bytes that it leaves out; None if it has none.
    """

    magic: re.Pattern[bytes]
    head_bytes: int
    header: struct.Struct
    own_bytes: int
    alignment: int
    samples: bytes
    file_size: tuple[int, struct.Struct, int] | None

    def is_chunk_name(self, name: bytes) -> bool:
        """Return whether a chunk may have this name: four letters, or a GUID of Wave64."""
        return name[4:] in (b"", W64_SUFFIX) and all(0x20 <= byte < 0x7F for byte in name[:4])


def _compile(magic: bytes) -> re.Pattern[bytes]:
    return re.compile(magic, re.DOTALL)


_LE_32, _BE_32, _LE_64 = struct.Struct("<I"), struct.Struct(">I"), struct.Struct("<Q")
WAV = ChunkFormat(_compile(b"RIFF....WAVE"), 12, struct.Struct("<4sI"), 0, 2, b"data", (4, _LE_32, 8))
RF64 = ChunkFormat(_compile(b"(?:RF64|BW64)....WAVE"), 12, struct.Struct("<4sI"), 0, 2, b"data", None)
AIFF = ChunkFormat(_compile(b"FORM....AIF[FC]"), 12, struct.Struct(">4sI"), 0, 2, b"SSND", (4, _BE_32, 8))
CAF = ChunkFormat(_compile(rb"caff\x00\x01.."), 8, struct.Struct(">4sQ"), 0, 1, b"data", None)
W64 = ChunkFormat(
    _compile(rb"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00.{8}wave"), 40, struct.Struct("<16sQ"), 24, 8,
    b"data" + W64_SUFFIX, (16, _LE_64, 0),
)  # fmt: skip
CHUNK_FORMATS = (WAV, RF64, AIFF, CAF, W64)


@dataclass(frozen=True)
class Chunk:
    """A chunk: its name, the position of its header, the stated size of its body, and where that begins and ends."""

    name: bytes
    position: int
    size: int
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.size


def find_chunk_parts(source: ErrorCapturingStream, start: int) -> list[StreamPart]:
    """Return the files of chunks that follow each other from `start` on, with sizes for samples that state none.

    Raises:
        AudioError: a header states fewer samples than the file has room for, and what follows them is no chunk.
    """
    size, reader = measure(source), source.open_buffered()
    parts = list[StreamPart]()
    while (layout := _recognise(reader, start)) is not None:
        part = _read_part(reader, layout, start, size)
        source.check()
        parts.append(part)
        start = part.stop
    return parts


def _recognise(reader: io.BufferedReader, position: int) -> ChunkFormat | None:
    reader.seek(position)
    head = reader.read(HEAD_BYTES)
    return next((layout for layout in CHUNK_FORMATS if layout.magic.match(head)), None)


def _read_part(reader: io.BufferedReader, layout: ChunkFormat, start: int, size: int) -> StreamPart:
    """Return the part that begins at `start`; it ends where another begins, or with the file of `size` bytes."""
    position, wide_sizes = start + layout.head_bytes, None
    while (chunk := _read_chunk(reader, layout, position, size)) is not None:
        if layout is RF64 and chunk.name == RF64_SIZES and chunk.size >= 16:
            wide_sizes = chunk
        if chunk.name == layout.samples:
            stop = _find_stop_of_samples(reader, layout, chunk, _read_wide_size(reader, wide_sizes, chunk), start, size)
            if stop is None:
                return StreamPart(start, size, _state_sizes(layout, chunk, wide_sizes, start, size))
            position = stop
        else:
            position = _align(layout, chunk.stop, start)
        if _recognise(reader, position):
            return StreamPart(start, position)
    return StreamPart(start, size)


def _read_chunk(reader: io.BufferedReader, layout: ChunkFormat, position: int, size: int) -> Chunk | None:
    """Return the chunk whose header is at `position`; None if there is no such header."""
    reader.seek(position)
    header = reader.read(layout.header.size)
    if len(header) < layout.header.size:
        return None
    name, stated = layout.header.unpack(header)
    if not layout.is_chunk_name(name):
        return None
    return Chunk(name, position, max(stated - layout.own_bytes, 0), position + layout.header.size)


def _read_wide_size(reader: io.BufferedReader, wide_sizes: Chunk | None, chunk: Chunk) -> int:
    """Return the size of samples: an RF64 states it in a chunk of its own."""
    if wide_sizes is None or chunk.size != LARGEST_SIZE:
        return chunk.size
    reader.seek(wide_sizes.start + 8)
    (stated,) = _LE_64.unpack(reader.read(8))
    return int(stated)


def _align(layout: ChunkFormat, position: int, start: int) -> int:
    return position + (start - position) % layout.alignment


def _find_stop_of_samples(
    reader: io.BufferedReader, layout: ChunkFormat, chunk: Chunk, stated: int, start: int, size: int
) -> int | None:
    """Return where the samples end; None if their size is not stated, and they fill the rest of the file.

    Raises:
        AudioError: more bytes follow than the stated ones, and they are no chunks.
    """
    stop, room = chunk.start + stated, size - chunk.start
    if stop > size:  # decoders read as far as the file goes; sizes of RF64 and CAF they take at their word
        return None if layout in (RF64, CAF) else size
    for position in (_align(layout, stop, start), stop):  # some programs leave out the padding
        if stated and (_recognise(reader, position) or _has_chunk(reader, layout, position, size)):
            return position
    if stated == 0:
        return stop if room == 0 or _are_chunks(reader, layout, stop, size) else None
    if size - stop > max(MAX_LOOSE_BYTES, MAX_LOOSE_SHARE * size) and _has_content(reader, stop):
        raise AudioError(
            f"states {stated} bytes of samples, and {size - stop} bytes follow that belong to no chunk; correct its "
            "header, or cut them off"
        )
    return size


def _has_chunk(reader: io.BufferedReader, layout: ChunkFormat, position: int, size: int) -> bool:
    chunk = _read_chunk(reader, layout, position, size)
    return chunk is not None and chunk.stop <= size


def _are_chunks(reader: io.BufferedReader, layout: ChunkFormat, position: int, size: int) -> bool:
    """Return whether the rest of a file is a sequence of whole chunks, or another file, and so no samples."""
    while (chunk := _read_chunk(reader, layout, position, size)) is not None:
        position = _align(layout, chunk.stop, 0)
    return size <= position < size + layout.alignment or _recognise(reader, position) is not None


def _has_content(reader: io.BufferedReader, position: int) -> bool:
    """Return whether bytes are more than zeros, with which recorders fill files in advance."""
    reader.seek(position)
    return any(reader.read(MAX_LOOSE_BYTES))


def _state_sizes(
    layout: ChunkFormat, chunk: Chunk, wide_sizes: Chunk | None, start: int, size: int
) -> tuple[tuple[int, bytes], ...]:
    """Return patches that make the samples fill the rest of the file."""
    rest = size - chunk.start
    if layout is RF64 and wide_sizes is not None:
        sizes = struct.pack("<QQ", size - start - 8, rest)
        return (chunk.position + 4 - start, _LE_32.pack(LARGEST_SIZE)), (wide_sizes.start - start, sizes)
    largest = LARGEST_SIZE if layout.header.size == 8 else 2**63 - 1
    name = chunk.name
    patches = [(chunk.position - start, layout.header.pack(name, min(rest + layout.own_bytes, largest)))]
    if layout.file_size is not None:
        offset, number, left_out = layout.file_size
        patches.append((offset, number.pack(min(size - start - left_out, largest))))
    return tuple(patches)


def find_au_parts(source: ErrorCapturingStream, start: int) -> list[StreamPart]:
    """Return the AU files from `start` on; samples fill the rest where their stated size ends at no other file."""
    size, reader = measure(source), source.open_buffered()
    parts = list[StreamPart]()
    while True:
        reader.seek(start)
        head = reader.read(12)
        if len(head) < 12 or not head.startswith(b".snd"):
            return parts
        offset, stated = struct.unpack(">II", head[4:])
        stop = start + offset + stated
        reader.seek(stop)
        if stated and stop < size and reader.read(4) == b".snd":
            parts.append(StreamPart(start, stop))
            start = stop
            continue
        is_stated = stop >= size or start + offset >= size
        patches = () if is_stated else ((8, struct.pack(">I", LARGEST_SIZE)),)
        return [*parts, StreamPart(start, size, patches)]
